"""Takes webhooks by HTTP and writes them to ``runners.webhooks``: an edge, many of it side by side.

``server`` reads and judges a request, ``keyring`` has the secrets, ``writer`` writes to Kafka and
waits, ``answers`` declares every answer, and ``gateway`` puts them together. What a provider's
webhooks look like is asked of :mod:`pipeline.providers`.
"""

from pipeline.gateway.gateway import Gateway, GatewayConfig
from pipeline.gateway.keyring import Keyring

__all__ = ["Gateway", "GatewayConfig", "Keyring"]
