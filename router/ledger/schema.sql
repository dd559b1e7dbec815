-- Version 1 of the ledger. Rows are only ever inserted; the triggers at the end see to it.
--
-- seq counts all rows of the ledger in one order, whatever their table, without gaps: the order of events even when
-- the clock jumps. hash chains every row to the one before it (router/ledger/rows.py says how).
-- Times are UTC text, YYYY-MM-DDTHH:MM:SS.ffffffZ: they sort as text. Amounts are integer nanos (1e-9) of `currency`.

-- One row per upstream call that may be billed, durable before its first byte leaves.
CREATE TABLE attempt (
  seq             INTEGER PRIMARY KEY,
  id              TEXT NOT NULL UNIQUE,
  request_id      TEXT NOT NULL,
  attempt_no      INTEGER NOT NULL,
  role            TEXT NOT NULL,             -- first, failover, retry, rescue, probe
  opened_at       TEXT NOT NULL,
  key             TEXT NOT NULL,             -- public name of the client key
  team            TEXT,
  project         TEXT,
  tags            TEXT NOT NULL,             -- JSON object
  user            TEXT,
  retry_count     INTEGER NOT NULL,
  operation       TEXT NOT NULL,
  model           TEXT NOT NULL,
  requested_model TEXT NOT NULL,
  target          TEXT NOT NULL,
  provider        TEXT NOT NULL,
  provider_model  TEXT NOT NULL,
  images          INTEGER NOT NULL,
  estimate_nanos  INTEGER NOT NULL CHECK (estimate_nanos >= 0),
  currency        TEXT NOT NULL,
  price_id        TEXT,                      -- NULL: unpriced
  price           TEXT NOT NULL,             -- JSON: the components in force, enough to rate again without any file
  expected        TEXT NOT NULL,             -- JSON: the quantities behind the estimate
  request_digest  TEXT NOT NULL,
  decision        TEXT NOT NULL,             -- JSON: why this target
  hash            BLOB NOT NULL
) STRICT;
CREATE INDEX attempt_request ON attempt (request_id);
CREATE INDEX attempt_opened ON attempt (opened_at);

-- An upstream job that was accepted: what a restart needs to ask for it.
CREATE TABLE job (
  seq         INTEGER PRIMARY KEY,
  attempt     INTEGER NOT NULL REFERENCES attempt (seq),
  recorded_at TEXT NOT NULL,
  job_id      TEXT NOT NULL,
  state       TEXT NOT NULL,                 -- JSON object
  hash        BLOB NOT NULL
) STRICT;
CREATE INDEX job_attempt ON job (attempt);

-- What became of an attempt, and its money. The cost of an attempt is the sum of its settled and adjusted entries;
-- what is held for it, at the estimate, is the sum of its unknown and released ones.
CREATE TABLE entry (
  seq                 INTEGER PRIMARY KEY,
  attempt             INTEGER NOT NULL REFERENCES attempt (seq),
  -- One by one: for a list of five, SQLite makes and drops a temporary table at every insert.
  kind                TEXT NOT NULL CHECK (
    kind = 'settled' OR kind = 'void' OR kind = 'unknown' OR kind = 'released' OR kind = 'adjusted'
  ),
  recorded_at         TEXT NOT NULL,
  amount_nanos        INTEGER NOT NULL,
  list_nanos          INTEGER NOT NULL,
  currency            TEXT NOT NULL,
  basis               TEXT,                  -- reported, reported_quantity, measured, worst_case, unpriced
  evidence            TEXT NOT NULL,         -- response, resume, restart, router, invoice, operator
  outcome             TEXT,
  delivered           INTEGER NOT NULL DEFAULT 0 CHECK (delivered IN (0, 1)),
  images              INTEGER NOT NULL DEFAULT 0,  -- made, measured
  output_pixels       INTEGER NOT NULL DEFAULT 0,
  input_pixels        INTEGER NOT NULL DEFAULT 0,
  metered_nanomp      INTEGER NOT NULL DEFAULT 0,  -- 1e-9 megapixels of the priced megapixel components, exact
  billed_nanomp       INTEGER NOT NULL DEFAULT 0,  -- the same after their rounding
  items               TEXT,                  -- JSON: line items
  usage               TEXT,                  -- JSON: measured quantities
  computed_nanos      INTEGER,
  reported_nanos      INTEGER,
  error_kind          TEXT,
  error               TEXT,
  provider_request_id TEXT,
  latency_ms          INTEGER,
  ttfb_ms             INTEGER,
  queue_ms            INTEGER,
  actor               TEXT,                  -- who adjusted
  reason              TEXT,                  -- and why
  hash                BLOB NOT NULL
) STRICT;
-- An attempt is resolved once, and may be unknown and released once before that: the database itself refuses a second
-- time. Adjustments are many.
CREATE UNIQUE INDEX entry_once ON entry (
  attempt, CASE kind WHEN 'settled' THEN 1 WHEN 'void' THEN 1 WHEN 'unknown' THEN 2 WHEN 'released' THEN 3 ELSE -seq END
);
CREATE INDEX entry_unknown ON entry (attempt) WHERE kind = 'unknown';

-- The life of the writer. No attempt before a start or stop is open: it has at least an unknown entry.
CREATE TABLE mark (
  seq         INTEGER PRIMARY KEY,
  recorded_at TEXT NOT NULL,
  event       TEXT NOT NULL CHECK (event IN ('start', 'stop', 'resume')),
  hash        BLOB NOT NULL
) STRICT;

-- Where every attempt stands, for people and reports: one row each, its money in its own currency.
CREATE VIEW standing AS
SELECT
  a.seq, a.id AS attempt_id, a.request_id, a.attempt_no, a.role, a.opened_at, a.key, a.team, a.project, a.tags, a.user,
  a.operation, a.model, a.target, a.provider, a.estimate_nanos,
  coalesce(r.kind, u.kind, 'open') AS state,
  coalesce(r.currency, u.currency, a.currency) AS currency,
  coalesce(r.amount_nanos, 0)
    + coalesce((SELECT sum(j.amount_nanos) FROM entry j WHERE j.attempt = a.seq AND j.kind = 'adjusted'), 0) AS cost_nanos,
  CASE WHEN r.seq IS NULL THEN coalesce(u.amount_nanos, a.estimate_nanos) ELSE 0 END AS unsettled_nanos,
  coalesce(r.list_nanos, 0) AS list_nanos,
  coalesce(r.delivered, 0) AS delivered,
  coalesce(r.basis, u.basis) AS basis,
  coalesce(r.outcome, u.outcome) AS outcome,
  coalesce(r.images, 0) AS images,
  coalesce(r.output_pixels, 0) AS output_pixels,
  coalesce(r.metered_nanomp, 0) AS metered_nanomp,
  coalesce(r.billed_nanomp, 0) AS billed_nanomp,
  coalesce(r.latency_ms, u.latency_ms) AS latency_ms,
  coalesce(r.recorded_at, u.recorded_at) AS recorded_at
FROM attempt a
LEFT JOIN entry r ON r.attempt = a.seq AND r.kind IN ('settled', 'void')
LEFT JOIN entry u ON u.attempt = a.seq AND u.kind = 'unknown';

-- Attempts whose outcome is not known. Fast whatever the ledger's size: unknown ones have an index, and open ones can
-- only be younger than the last start or stop.
CREATE VIEW unresolved AS
SELECT a.seq, a.id AS attempt_id, 'unknown' AS state, u.amount_nanos AS held_nanos, u.currency
FROM entry u JOIN attempt a ON a.seq = u.attempt
WHERE u.kind = 'unknown'
  AND NOT EXISTS (SELECT 1 FROM entry r WHERE r.attempt = u.attempt AND r.kind IN ('settled', 'void'))
UNION ALL
SELECT a.seq, a.id, 'open', a.estimate_nanos, a.currency
FROM attempt a
WHERE a.seq > (SELECT coalesce(max(seq), 0) FROM mark WHERE event IN ('start', 'stop'))
  AND NOT EXISTS (SELECT 1 FROM entry r WHERE r.attempt = a.seq AND r.kind IN ('settled', 'void'))
  AND NOT EXISTS (SELECT 1 FROM entry u WHERE u.attempt = a.seq AND u.kind = 'unknown');

-- Append-only. Inserting over an existing row would delete it without a word, so that is refused as well.
CREATE TRIGGER attempt_update BEFORE UPDATE ON attempt BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER attempt_delete BEFORE DELETE ON attempt BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER job_update BEFORE UPDATE ON job BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER job_delete BEFORE DELETE ON job BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entry_update BEFORE UPDATE ON entry BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entry_delete BEFORE DELETE ON entry BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER mark_update BEFORE UPDATE ON mark BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER mark_delete BEFORE DELETE ON mark BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER attempt_replace BEFORE INSERT ON attempt
WHEN EXISTS (SELECT 1 FROM attempt WHERE seq = NEW.seq OR id = NEW.id)
BEGIN SELECT raise(ABORT, 'this is in the ledger already'); END;
CREATE TRIGGER job_replace BEFORE INSERT ON job WHEN EXISTS (SELECT 1 FROM job WHERE seq = NEW.seq)
BEGIN SELECT raise(ABORT, 'this is in the ledger already'); END;
CREATE TRIGGER entry_replace BEFORE INSERT ON entry
WHEN EXISTS (
  SELECT 1 FROM entry WHERE seq = NEW.seq
  UNION ALL
  SELECT 1 FROM entry WHERE attempt = NEW.attempt AND NEW.kind <> 'adjusted'
    AND (kind = NEW.kind OR (kind IN ('settled', 'void') AND NEW.kind IN ('settled', 'void')))
)
BEGIN SELECT raise(ABORT, 'this is in the ledger already'); END;
CREATE TRIGGER mark_replace BEFORE INSERT ON mark WHEN EXISTS (SELECT 1 FROM mark WHERE seq = NEW.seq)
BEGIN SELECT raise(ABORT, 'this is in the ledger already'); END;
