"""State: the index of studies, the worklist, the audit. The only importer of sqlalchemy."""

from dicomai.database.engine import Database, owner_name

__all__ = ["Database", "owner_name"]
