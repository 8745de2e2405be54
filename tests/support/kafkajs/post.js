// Posts webhooks as kafkajs does. Standard input: {"bootstrap", "topic", "records": [{"value": base64,
// "headers": {name: text}}]}.
const { Kafka, logLevel } = require("kafkajs");

async function main() {
  const told = JSON.parse(require("fs").readFileSync(0, "utf8"));
  const kafka = new Kafka({ brokers: [told.bootstrap], logLevel: logLevel.ERROR });
  const producer = kafka.producer();
  await producer.connect();
  await producer.send({
    topic: told.topic,
    acks: -1,
    messages: told.records.map(({ value, headers }) => ({
      value: Buffer.from(value, "base64"),
      headers,
    })),
  });
  await producer.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
