import type { DatabaseSync } from "node:sqlite";
import { ServingError } from "@atelier/core";

/** "ATLQ": tells our files from other programs' databases. */
const APPLICATION_ID = 0x41544c51;
export const SCHEMA_VERSION = 1;

/** States of an item's row. Rows that have ended stay for a while, to know the item if it is published again. */
export const WAITING = 0;
export const HELD = 1;
export const ENDED = 2;

/**
 * Times are milliseconds since the Unix epoch by the openers' clocks, which may be set forward and back. Whatever waits for
 * one keeps beside it how long the wait was meant to be, so that a time further ahead than that is known to be wrong.
 */
const SCHEMA = `
  CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL, item_index INTEGER NOT NULL, round INTEGER NOT NULL,
    priority_class INTEGER NOT NULL, model TEXT NOT NULL,
    item BLOB NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    published_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    -- Grows with every pull: a puller whose number it is not any more has lost the item.
    delivery INTEGER NOT NULL DEFAULT 0,
    -- Waiting: from when it may be pulled. Held: when that runs out. Ended: when it did.
    due_ms INTEGER NOT NULL DEFAULT 0,
    wait_ms INTEGER NOT NULL DEFAULT 0,
    UNIQUE (job, item_index, round)
  ) STRICT;
  CREATE INDEX items_waiting ON items (priority_class, model, id) WHERE state = 0;
  CREATE INDEX items_held ON items (priority_class, model, due_ms, wait_ms) WHERE state = 1;
  CREATE INDEX items_ended ON items (due_ms) WHERE state = 2;

  CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL, item_index INTEGER NOT NULL,
    letter BLOB NOT NULL
  ) STRICT;
  CREATE INDEX dead_letters_job ON dead_letters (job, item_index);

  CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL,
    event_id TEXT NOT NULL UNIQUE,
    event BLOB NOT NULL
  ) STRICT;
  CREATE INDEX events_job ON events (job, sequence);

  CREATE TABLE records (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) STRICT;

  -- The newest reports only: they are for whoever listens now.
  CREATE TABLE progress (id INTEGER PRIMARY KEY AUTOINCREMENT, report BLOB NOT NULL) STRICT;

  CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  INSERT INTO counters VALUES ('revision', 0), ('stops', 0);

  PRAGMA application_id = ${APPLICATION_ID};
  PRAGMA user_version = ${SCHEMA_VERSION};
`;

/** Makes the tables in an empty file, and checks those of another. @throws ServingError STORAGE_UNAVAILABLE. */
export function ensureSchema(database: DatabaseSync, path: string): void {
  // Immediately, so that of two processes that open a new file one makes the tables and the other finds them.
  database.exec("BEGIN IMMEDIATE");
  try {
    const application = pragma(database, "application_id");
    const version = pragma(database, "user_version");
    if (application === 0 && version === 0 && tableCount(database) === 0) {
      database.exec(SCHEMA);
    } else if (application !== APPLICATION_ID) {
      throw unusable(path, "is another program's database");
    } else if (version !== SCHEMA_VERSION) {
      const whose = version > SCHEMA_VERSION ? "a newer" : "an older";
      throw unusable(path, `has schema version ${version}, of ${whose} Atelier; this one reads ${SCHEMA_VERSION}`);
    }
    // A file that may only be read is found out now: without a write even this transaction would be one that reads.
    database.exec(`PRAGMA user_version = ${SCHEMA_VERSION}`);
    database.exec("COMMIT");
  } catch (error) {
    if (database.isTransaction) database.exec("ROLLBACK");
    throw error;
  }
}

function unusable(path: string, what: string): ServingError {
  return new ServingError("STORAGE_UNAVAILABLE", `the queue ${path} ${what}`);
}

function tableCount(database: DatabaseSync): number {
  return (database.prepare("SELECT count(*) AS count FROM sqlite_master").get() as { count: number }).count;
}

function pragma(database: DatabaseSync, name: string): number {
  return Object.values(database.prepare(`PRAGMA ${name}`).get() as Record<string, number>)[0]!;
}
