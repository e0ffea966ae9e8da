/** Writes deploy/observability/generated/dashboards: one JSON for each board of dashboards/, as Grafana imports them. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { cacheAndCost } from "./dashboards/cache-and-cost.ts";
import { fleet } from "./dashboards/fleet.ts";
import { jobs } from "./dashboards/jobs.ts";
import { overview } from "./dashboards/overview.ts";
import { boardJson } from "./dashboards/panels.ts";
import { pipeline } from "./dashboards/pipeline.ts";
import { tenants } from "./dashboards/tenants.ts";
import { writeOrCheck } from "./generated-file.ts";

const folder = "deploy/observability/generated/dashboards";
const boards = [overview, fleet, pipeline, cacheAndCost, jobs, tenants];

const files = new Map<string, string | undefined>();
const there = join(import.meta.dirname, "../..", folder);
for (const name of existsSync(there) ? readdirSync(there) : []) files.set(`${folder}/${name}`, undefined);
for (const board of boards) files.set(`${folder}/${board.uid}.json`, `${JSON.stringify(boardJson(board), null, 2)}\n`);
writeOrCheck(files);
