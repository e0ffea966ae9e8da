import { type Board, HERE, lines, stat } from "./panels.ts";

const rate = (metric: string, by: string) => `sum by (${by}) (rate(${metric}{${HERE}}[$__rate_interval]))`;
/** An instance that stands by knows the same jobs: never the sum. */
const ofAll = (metric: string, by: string) => `max by (${by}) (${metric}{${HERE}})`;

export const jobs: Board = {
  uid: "atelier-jobs",
  title: "Jobs",
  about: "Bulk jobs: what waits, how fast it is made, what was given up, and whether those who wait are told.",
  aboutZh: "批量任务：积压、速度、放弃的任务项，以及通知是否送达。",
  rows: [
    {
      title: "Now",
      panels: [
        stat({
          title: "Queue and object store answer",
          about:
            "1 while both do. At 0 submissions are refused with 503 and no job goes on; after ten minutes QueueUnreachable pages.",
          aboutZh: "1 表示 NATS 与对象存储可达；0 时拒绝提交，十分钟后呼叫值班。",
          unit: "short",
          thresholds: { below: "red", from: [[1, "green"]] },
          width: 6,
          query: `max(atelier_jobs_queue_reachable{${HERE}})`,
        }),
        stat({
          title: "Bulk work that waits",
          about:
            "Device seconds that the unfinished items of running jobs are predicted to take. Divide by ready workers for the time until all is made.",
          aboutZh: "运行中任务剩余的预计设备秒。除以可用 worker 数即剩余时间。",
          unit: "s",
          width: 6,
          query: `sum(atelier:jobs_backlog_device_seconds{${HERE}})`,
        }),
        stat({
          title: "Items ended a second",
          about: "Done, failed or filtered.",
          aboutZh: "每秒结束的任务项。",
          unit: "ops",
          width: 6,
          query: `sum(rate(atelier_jobs_items_ended_total{${HERE}}[$__rate_interval]))`,
        }),
        stat({
          title: "Given up within an hour",
          about:
            "Items that failed as often as an item may. Each is a picture that somebody waits for: see /v1/dead-letters.",
          aboutZh: "一小时内被放弃的任务项，见 /v1/dead-letters。",
          unit: "short",
          width: 6,
          thresholds: { below: "green", from: [[0.5, "red"]] },
          query: `sum(increase(atelier_jobs_dead_letters_total{${HERE}}[1h]))`,
        }),
      ],
    },
    {
      title: "Jobs and items",
      panels: [
        lines({
          title: "Jobs by status",
          about: "Those that are kept.",
          aboutZh: "保留中的任务，按状态。",
          unit: "short",
          stacked: true,
          queries: [["{{status}}", ofAll("atelier_jobs_jobs", "status")]],
        }),
        lines({
          title: "Items by state",
          about: "Of all jobs that are kept.",
          aboutZh: "所有任务项，按状态。",
          unit: "short",
          stacked: true,
          queries: [["{{state}}", ofAll("atelier_jobs_items", "state")]],
        }),
        lines({
          title: "Items that ended",
          about: "filtered: stopped by a filter of content; failed: see each item's reason.",
          aboutZh: "结束的任务项：done、failed、filtered。",
          unit: "ops",
          stacked: true,
          queries: [["{{state}}", rate("atelier_jobs_items_ended_total", "state")]],
        }),
        lines({
          title: "Backlog by class and model",
          about: "Device seconds; what autoscaling of bulk pools looks at.",
          aboutZh: "按等级和模型的积压（设备秒），批量池自动扩缩的依据。",
          unit: "s",
          stacked: true,
          queries: [["{{class}} {{model}}", ofAll("atelier_jobs_backlog_device_seconds", "class, model")]],
        }),
        lines({
          title: "Items in the work queue",
          about: "held: a worker has it. Only a window of each job is in the queue at a time.",
          aboutZh: "工作队列中的任务项；held 表示已被 worker 领取。",
          unit: "short",
          stacked: true,
          queries: [["{{class}} {{model}} held={{held}}", ofAll("atelier_jobs_queue_items", "class, model, held")]],
        }),
        lines({
          title: "Age of the oldest item that waits",
          about:
            "Grows while nobody pulls this class and model: no worker has the model, or all are busy with more urgent work.",
          aboutZh: "最老未领取任务项的等待时间；持续增长说明没有 worker 领取。",
          unit: "s",
          queries: [["{{class}} {{model}}", ofAll("atelier_jobs_queue_oldest_seconds", "class, model")]],
        }),
      ],
    },
    {
      title: "Workers on items",
      panels: [
        lines({
          title: "How items left the workers",
          about:
            "retried and handed-back come again; buried ones are dead letters; lost ones were taken over by another worker.",
          aboutZh: "任务项离开 worker 的方式。",
          unit: "ops",
          stacked: true,
          queries: [["{{outcome}}", rate("atelier_worker_items_total", "outcome")]],
        }),
        lines({
          title: "Time of an item",
          about: "From its delivery to a worker until it was done, p50 and p95.",
          aboutZh: "任务项从送达到完成的时间。",
          unit: "s",
          queries: [0.5, 0.95].map(
            (q) =>
              [
                `{{class}} p${q * 100}`,
                `histogram_quantile(${q}, sum by (le, class) (rate(atelier_worker_item_seconds_bucket{${HERE}}[$__rate_interval])))`,
              ] as const,
          ),
        }),
        lines({
          title: "Redeliveries, and pauses of pulling",
          about:
            "Attempts beyond the first; and workers that pull nothing since the queue or the object store does not answer.",
          aboutZh: "重复投递；以及因队列或存储不可用而暂停领取的 worker 数。",
          unit: "short",
          queries: [
            ["redeliveries a second", `sum(rate(atelier_jobs_redeliveries_total{${HERE}}[$__rate_interval]))`],
            ["paused workers: {{reason}}", `sum by (reason) (atelier_worker_item_pulling_paused{${HERE}})`],
          ],
        }),
      ],
    },
    {
      title: "Webhooks",
      panels: [
        lines({
          title: "Webhook calls",
          about:
            "failed ones are given up, stopped ones told us so with 410. Above a tenth, WebhooksFail opens a ticket.",
          aboutZh: "webhook 调用结果；放弃超过一成会生成工单。",
          unit: "ops",
          width: 8,
          stacked: true,
          queries: [["{{event}} {{outcome}}", rate("atelier_jobs_webhook_calls_total", "event, outcome")]],
        }),
        lines({
          title: "Time that receivers take",
          about: "p95 of a call. 10 s is the limit.",
          aboutZh: "接收方应答时间 p95，上限 10 秒。",
          unit: "s",
          queries: [
            [
              "p95",
              `histogram_quantile(0.95, sum by (le) (rate(atelier_jobs_webhook_call_duration_seconds_bucket{${HERE}}[$__rate_interval])))`,
            ],
          ],
        }),
        lines({
          title: "Webhook calls that wait",
          about: "For their first or their next attempt.",
          aboutZh: "等待首次或下次尝试的 webhook 调用。",
          unit: "short",
          queries: [["waiting", `max(atelier_jobs_webhook_deliveries_pending{${HERE}})`]],
        }),
      ],
    },
  ],
};
