"""Money, kept: a durable, append-only record of every upstream call that may be billed. See README.md here."""

from router.ledger.audit import Audit, backup, verify
from router.ledger.database import LedgerError, LedgerRefused, ledger_path
from router.ledger.entry import (
    Adjustment,
    JobNote,
    Opening,
    Role,
    Settlement,
    State,
    Unresolved,
    expected_as_dict,
    usage_as_dict,
    usage_from_dict,
)
from router.ledger.reports import AttemptRecord, Reports
from router.ledger.store import Ledger

__all__ = [
    "Adjustment",
    "AttemptRecord",
    "Audit",
    "JobNote",
    "Ledger",
    "LedgerError",
    "LedgerRefused",
    "Opening",
    "Reports",
    "Role",
    "Settlement",
    "State",
    "Unresolved",
    "backup",
    "expected_as_dict",
    "ledger_path",
    "usage_as_dict",
    "usage_from_dict",
    "verify",
]
