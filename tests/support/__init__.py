"""Real parts for the tests: brokers, and what starts them."""
