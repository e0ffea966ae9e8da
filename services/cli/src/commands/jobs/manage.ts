import type { Server } from "../../client/gateway-client.ts";
import type { ItemJson, JobJson } from "../../client/job-json.ts";
import { JobsClient } from "../../client/jobs-client.ts";
import { duration, grouped, money } from "../../terminal/amounts.ts";
import { type Column, table } from "../../terminal/table.ts";
import { endedCount, progressOf, statusOf } from "./words.ts";

const FAILED_SHOWN = 20;

export interface ListOptions {
  readonly server: Server;
  readonly status: string | undefined;
  readonly name: string | undefined;
  readonly limit: number;
  readonly json: boolean;
}

export async function listJobs({ server, json, ...query }: ListOptions): Promise<void> {
  const jobs = await new JobsClient(server).list(query);
  if (json) console.log(JSON.stringify(jobs, undefined, 2));
  else console.log(jobs.length === 0 ? "There are no jobs · 没有任务" : table(COLUMNS, jobs));
}

interface OfJob {
  readonly server: Server;
  readonly id: string;
  readonly json: boolean;
}

/** A job, and the first of its items that failed with why. */
export async function showJob({ server, id, json }: OfJob): Promise<void> {
  const client = new JobsClient(server);
  const job = await client.get(id);
  const failed = job.counts.failed === 0 ? [] : await client.items(id, { state: "failed", limit: FAILED_SHOWN });
  console.log(json ? JSON.stringify({ ...job, failed_items: failed }, undefined, 2) : inWords(job, failed));
}

const PARTICIPLES = { pause: "paused · 已暂停", resume: "going on · 已继续", cancel: "cancelled · 已取消" } as const;

export async function changeJob({
  server,
  id,
  verb,
  json,
}: OfJob & { readonly verb: keyof typeof PARTICIPLES }): Promise<void> {
  const job = (await new JobsClient(server).command(id, verb)) as JobJson;
  console.log(json ? JSON.stringify(job, undefined, 2) : `Job ${id} is ${PARTICIPLES[verb]}`);
}

export async function retryJob({
  server,
  id,
  items,
  json,
}: OfJob & { readonly items: readonly number[] | undefined }): Promise<void> {
  const reply = await new JobsClient(server).command(id, "retry", items === undefined ? {} : { items });
  if (json) return console.log(JSON.stringify(reply, undefined, 2));
  const { items: count } = reply as { items: number };
  console.log(
    count === 0
      ? `No item of job ${id} has failed · 没有失败的图片`
      : `${grouped(count)} items are made again · 正在重试: atelier jobs watch ${id}`,
  );
}

export async function removeJob({ server, id }: Omit<OfJob, "json">): Promise<void> {
  await new JobsClient(server).remove(id);
  console.log(`Job ${id} and its pictures are deleted · 已删除`);
}

const COLUMNS: readonly Column<JobJson>[] = [
  { title: "ID", of: ({ id }) => id },
  { title: "NAME", of: ({ name }) => name },
  { title: "STATUS", of: statusOf },
  { title: "DONE", of: (job) => `${grouped(endedCount(job))} of ${grouped(job.item_count)}` },
  { title: "FAILED", of: ({ counts }) => grouped(counts.failed) },
  { title: "LEFT", of: ({ eta_ms }) => (eta_ms === null ? "-" : duration(eta_ms)) },
  { title: "SPENT", of: ({ spent }) => money(spent.cost, spent.currency) },
  { title: "CREATED", of: ({ created_at }) => created_at },
];

function inWords(job: JobJson, failed: readonly ItemJson[]): string {
  const { predicted, spent } = job;
  const seconds = (value: number) => `${grouped(Math.ceil(value))} device seconds`;
  return [
    `${job.id}  ${job.name}`,
    progressOf(job, { bar: false }),
    `priority ${job.priority}, created ${job.created_at}${job.ended_at === null ? "" : `, ended ${job.ended_at}`}`,
    `predicted ${seconds(predicted.device_seconds)}, ${money(predicted.cost, predicted.currency)}; ` +
      `spent ${seconds(spent.device_seconds)}, ${money(spent.cost, spent.currency)}`,
    ...(job.skipped_count === 0 ? [] : [`${grouped(job.skipped_count)} rows of its sheet were left out`]),
    ...(failed.length === 0 ? [] : ["", table(FAILED_COLUMNS, failed)]),
    ...(failed.length < job.counts.failed ? [`... and ${grouped(job.counts.failed - failed.length)} more`] : []),
  ].join("\n");
}

const FAILED_COLUMNS: readonly Column<ItemJson>[] = [
  { title: "ITEM", of: ({ index }) => String(index) },
  { title: "ROW", of: ({ row }) => String(row) },
  { title: "SKU", of: ({ sku }) => sku ?? "-" },
  { title: "ATTEMPTS", of: ({ error }) => String(error?.attempts ?? "-") },
  { title: "WHY IT FAILED", of: ({ error }) => (error === null ? "-" : `${error.message} [${error.code}]`) },
];
