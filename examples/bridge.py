"""A bridge from HTTP to Kafka: webhooks go to runners.webhooks as they come in.

    python examples/bridge.py localhost:9092 8080

Point the hook at it, behind your TLS. It checks nothing: workers that know the hook's secret do.
Answers 204 when Kafka has acknowledged, and not before.
"""

import sys

from aiohttp import web
from aiokafka import AIOKafkaProducer

#: GitHub sends up to 25 MB; the topic takes 32 MiB.
LIMIT = 25 * 1024 * 1024
KAFKA = web.AppKey("kafka", AIOKafkaProducer)


async def take(request: web.Request) -> web.Response:
    """Body and headers to Kafka, untouched; no credentials."""
    body = await request.read()
    headers = [
        (name.decode("latin-1"), value)
        for name, value in request.raw_headers
        if name.lower() not in (b"authorization", b"cookie")
    ]
    await request.app[KAFKA].send_and_wait("runners.webhooks", body, headers=headers)
    return web.Response(status=204)


async def main(brokers: str) -> web.Application:
    """The application, connected to Kafka."""
    app = web.Application(client_max_size=LIMIT)
    app[KAFKA] = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", max_request_size=2 * LIMIT)
    await app[KAFKA].start()
    app.on_cleanup.append(lambda _: app[KAFKA].stop())
    app.router.add_post("/{path:.*}", take)
    return app


if __name__ == "__main__":
    web.run_app(main(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
