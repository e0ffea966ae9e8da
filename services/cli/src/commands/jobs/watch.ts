import type { Server } from "../../client/gateway-client.ts";
import type { JobJson } from "../../client/job-json.ts";
import { JobsClient } from "../../client/jobs-client.ts";
import { grouped, money } from "../../terminal/amounts.ts";
import { StatusLine } from "../../terminal/status-line.ts";
import { type Stop, stopOnSignals } from "./stop-on-signals.ts";
import { pictures, progressOf, statusOf } from "./words.ts";

/** Shows a job until it has ended. Resolves to the exit code. */
export async function watch({ server, id, json }: { server: Server; id: string; json: boolean }): Promise<number> {
  const stop = stopOnSignals();
  try {
    return await watchJob({ client: new JobsClient(server, stop.signal), id, json, stop });
  } finally {
    stop.end();
  }
}

/** 0 when all of its pictures are there, 1 when some are not, 130 when the watching was ended: the job goes on then. */
export async function watchJob({
  client,
  id,
  json,
  stop,
}: {
  client: JobsClient;
  id: string;
  json: boolean;
  stop: Stop;
}): Promise<number> {
  const line = new StatusLine(process.stderr);
  let job: JobJson | undefined;
  try {
    for await (const changed of client.follow(id)) {
      job = changed;
      line.show(progressOf(job, { bar: line.live }), statusOf(job));
    }
  } catch (error) {
    line.clear();
    if (!stop.signal.aborted) throw error;
    console.error(`The job goes on; come back with · 任务继续运行: atelier jobs watch ${id}`);
    return 130;
  }
  line.clear();
  if (job === undefined) return 1;
  console.log(json ? JSON.stringify(job, undefined, 2) : ending(job));
  return job.status === "done" && job.counts.failed === 0 ? 0 : 1;
}

function ending(job: JobJson): string {
  const { id, counts, spent } = job;
  const done = `${pictures(counts.done)}, ${money(spent.cost, spent.currency)}`;
  if (job.status === "cancelled") return `Cancelled after ${done} · 已取消`;
  return [
    `Done: ${done} · 已完成`,
    ...(counts.filtered > 0 ? [`${grouped(counts.filtered)} were held back by a policy: atelier jobs show ${id}`] : []),
    ...(counts.failed > 0 ? [`${grouped(counts.failed)} failed. Try them again · 重试: atelier jobs retry ${id}`] : []),
    `Fetch them · 下载: atelier jobs download ${id} -o pictures`,
  ].join("\n");
}
