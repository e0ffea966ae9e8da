import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { basename, extname } from "node:path";
import { CliError } from "../../cli-error.ts";
import type { Server } from "../../client/gateway-client.ts";
import type { JobJson, PreviewJson } from "../../client/job-json.ts";
import { JobsClient, type Submission } from "../../client/jobs-client.ts";
import { duration, grouped, money, size } from "../../terminal/amounts.ts";
import { StatusLine } from "../../terminal/status-line.ts";
import { type Column, table } from "../../terminal/table.ts";
import { stopOnSignals } from "./stop-on-signals.ts";
import { watchJob } from "./watch.ts";
import { pictures } from "./words.ts";

export interface SubmitOptions {
  readonly server: Server;
  readonly sheet: string | undefined;
  /** JSON of a job's options, or of a whole job. */
  readonly templateFile: string | undefined;
  /** What was given on the command line; lies over the file. */
  readonly given: JobOptions;
  readonly idempotencyKey: string | undefined;
  readonly dryRun: boolean;
  readonly watch: boolean;
  readonly json: boolean;
}

/** As POST /v1/jobs takes them. */
export interface JobOptions {
  readonly name?: string | undefined;
  readonly template?: Readonly<Record<string, unknown>> | undefined;
  readonly [option: string]: unknown;
}

/** Sends a sheet as a job. Resolves to the exit code. @throws CliError with the server's words, line numbers among them. */
export async function submitJob(options: SubmitOptions): Promise<number> {
  const { server, sheet, json, watch } = options;
  const submission: Submission = {
    options: { ...nameOf(sheet), ...merged(await readTemplate(options.templateFile), options.given) },
    sheet,
    idempotencyKey: options.idempotencyKey ?? randomUUID(),
  };
  const line = new StatusLine(process.stderr);
  const stop = stopOnSignals();
  try {
    const client = new JobsClient(server, stop.signal);
    const onSent = (bytes: number, total: number) => {
      if (line.live) line.show(`sending ${sheet}: ${size(bytes)} of ${size(total)}`);
      if (bytes === total && line.live) line.show("reading the sheet");
    };
    if (options.dryRun) {
      const preview = await client.preview(submission, onSent).finally(() => line.clear());
      console.log(json ? JSON.stringify(preview, undefined, 2) : inWords(preview));
      return 0;
    }
    const job = await client.submit(submission, onSent).finally(() => line.clear());
    if (!watch) {
      console.log(json ? JSON.stringify(job, undefined, 2) : accepted(job));
      return 0;
    }
    if (!json) console.log(accepted(job));
    return await watchJob({ client, id: job.id, json, stop });
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    console.error("cancelled; atelier jobs ls says whether it had been taken on · 已取消");
    return 130;
  } finally {
    stop.end();
  }
}

/** A job is called what its sheet is called. */
function nameOf(sheet: string | undefined): { readonly name?: string } {
  return sheet === undefined ? {} : { name: basename(sheet, extname(sheet)) };
}

async function readTemplate(file: string | undefined): Promise<JobOptions> {
  if (file === undefined) return {};
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    throw new CliError(`${file} cannot be read: ${(error as Error).message}`, { cause: error });
  }
  try {
    const read = JSON.parse(text) as unknown;
    if (typeof read === "object" && read !== null && !Array.isArray(read)) return read as JobOptions;
  } catch (error) {
    throw new CliError(`${file} is not JSON: ${(error as Error).message}`, { cause: error });
  }
  throw new CliError(`${file} holds no JSON object with a job's options`);
}

/** The command line over the file, in the template field by field. */
function merged(file: JobOptions, given: JobOptions): JobOptions {
  const template = { ...file.template, ...given.template };
  const defaults = { ...(file.template?.["defaults"] as object), ...(given.template?.["defaults"] as object) };
  return {
    ...file,
    ...given,
    ...(Object.keys(template).length > 0 && {
      template: { ...template, ...(Object.keys(defaults).length > 0 && { defaults }) },
    }),
  };
}

function accepted(job: JobJson): string {
  const { skipped_count: left } = job;
  const skipped = left === 0 ? "" : `\n${grouped(left)} rows were left out: atelier jobs show ${job.id} --json`;
  return (
    `${job.id}  ${pictures(job.item_count)}, ${workOf(job)} · 已提交${skipped}\n` +
    `Watch it · 查看进度: atelier jobs watch ${job.id}`
  );
}

function inWords(preview: PreviewJson): string {
  const { item_count: count, eta_ms: eta, skipped_count: left, skipped, notes, items, fits } = preview;
  const until = eta === null ? "" : `, ${duration(eta)} as things are now`;
  return [
    `${pictures(count)}, ${workOf(preview)}${until}. Nothing was submitted · 仅预览`,
    ...(fits ? [] : ["It would be refused: more than is left of the tenant's month · 超出配额"]),
    ...notes,
    ...(left === 0 ? [] : [`${grouped(left)} rows would be left out:`]),
    ...skipped.slice(0, 10).map(({ line, message }) => `  line ${line}: ${message}`),
    "",
    table(FIRST_COLUMNS, items),
  ].join("\n");
}

function workOf({ predicted: { device_seconds: seconds, cost, currency } }: JobJson | PreviewJson): string {
  return `about ${grouped(Math.ceil(seconds))} device seconds, ${money(cost, currency)}`;
}

const FIRST_COLUMNS: readonly Column<PreviewJson["items"][number]>[] = [
  { title: "ROW", of: ({ row }) => String(row) },
  { title: "FILE", of: ({ file }) => file },
  { title: "SEED", of: ({ seed }) => String(seed) },
  { title: "PRESET", of: ({ preset }) => preset ?? "-" },
  { title: "PROMPT", of: ({ prompt }) => prompt },
];
