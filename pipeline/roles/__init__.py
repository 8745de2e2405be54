"""What a worker can be: each role declared once, and the one supervisor of their processes."""

from pipeline.roles.registry import ROLES, first, wanted
from pipeline.roles.role import Role, RoleFailed

__all__ = ["ROLES", "Role", "RoleFailed", "first", "wanted"]
