import { type Board, HERE, lines, stat } from "./panels.ts";

/** The requests that are for pictures, as the objectives count them (deploy/observability/rules/slo.rules.yaml). */
const PICTURES = `route=~"/generate|/v1/generations|/v1/images/(generations|edits)|/sdapi/v1/(txt2img|img2img)|atelier.v1.Generation/Create", method=~"POST|gRPC", ${HERE}`;
const BURNING = {
  below: "green",
  from: [
    [1, "yellow"],
    [6, "orange"],
    [14.4, "red"],
  ],
} as const;
const BUDGET = {
  below: "red",
  from: [
    [0, "orange"],
    [0.25, "green"],
  ],
} as const;

export const overview: Board = {
  uid: "atelier-overview",
  title: "Overview",
  about:
    "Can shoppers get pictures? The two objectives first, then what stands in the way. Anything red here has an alert, and the alert has a runbook.",
  aboutZh: "用户能否出图？先看两个目标，再看原因。这里变红的都有告警，告警都有处理手册。",
  rows: [
    {
      title: "Objectives over 30 days",
      panels: [
        stat({
          title: "Requests answered",
          about:
            "Share of the requests for pictures that did not fail by our fault, over 30 days. The objective is 99.9 %.",
          aboutZh: "30 天内非我方原因失败的出图请求占比，目标 99.9 %。",
          unit: "percentunit",
          decimals: 3,
          thresholds: { below: "red", from: [[0.999, "green"]] },
          query: `1 - atelier:generation_requests_bad:ratio_rate30d{${HERE}}`,
        }),
        stat({
          title: "Failures left in the budget",
          about:
            "Of the thousandth of requests that may fail in 30 days: how much of it has not been used. Below 0 the objective is missed; hold back risky changes.",
          aboutZh: "30 天错误预算剩余。低于 0 表示未达标，应暂停有风险的变更。",
          unit: "percentunit",
          decimals: 1,
          thresholds: BUDGET,
          query: `1 - atelier:generation_requests_bad:ratio_rate30d{${HERE}} / 0.001`,
        }),
        stat({
          title: "Pictures in time",
          about: "Share of the interactive pictures that came within 5 s, over 30 days. The objective is 99 %.",
          aboutZh: "30 天内 5 秒以内完成的交互出图占比，目标 99 %。",
          unit: "percentunit",
          decimals: 2,
          thresholds: { below: "red", from: [[0.99, "green"]] },
          query: `1 - atelier:interactive_pictures_slow:ratio_rate30d{${HERE}}`,
        }),
        stat({
          title: "Late pictures left in the budget",
          about:
            "Of the hundredth of interactive pictures that may be late in 30 days: how much of it has not been used.",
          aboutZh: "30 天延迟预算剩余。",
          unit: "percentunit",
          decimals: 1,
          thresholds: BUDGET,
          query: `1 - atelier:interactive_pictures_slow:ratio_rate30d{${HERE}} / 0.01`,
        }),
        stat({
          title: "Ready workers",
          about: "Workers that take requests. At 0 nobody gets a picture that no cache has, and NoReadyWorker pages.",
          aboutZh: "可接收请求的 worker 数。为 0 时除缓存外无法出图。",
          unit: "short",
          thresholds: { below: "red", from: [[1, "green"]] },
          query: `sum(max by (namespace) (atelier_gateway_workers{ready="true", ${HERE}}))`,
        }),
        stat({
          title: "Alerts that fire",
          about: "How many alerts of this system fire now; the alert itself names its runbook.",
          aboutZh: "当前触发的告警数。",
          unit: "short",
          thresholds: { below: "green", from: [[1, "red"]] },
          query: `count(ALERTS{alertstate="firing", severity=~"page|ticket"}) or vector(0)`,
        }),
      ],
    },
    {
      title: "How fast the budgets are spent",
      panels: [
        lines({
          title: "Burn rate of failures",
          about:
            "1 spends the budget in exactly 30 days. At 14.4 over an hour, or 6 over six hours, somebody is paged; at 1 over three days there is a ticket.",
          aboutZh: "1 表示恰好 30 天用完预算。1 小时达 14.4 或 6 小时达 6 会呼叫值班。",
          unit: "short",
          width: 12,
          thresholds: BURNING,
          queries: ["5m", "1h", "6h", "3d"].map(
            (window) =>
              [`over ${window}`, `atelier:generation_requests_bad:ratio_rate${window}{${HERE}} / 0.001`] as const,
          ),
        }),
        lines({
          title: "Burn rate of late pictures",
          about: "The same of interactive pictures that take longer than 5 s.",
          aboutZh: "交互出图超过 5 秒的预算消耗速度。",
          unit: "short",
          width: 12,
          thresholds: BURNING,
          queries: ["5m", "1h", "6h", "3d"].map(
            (window) =>
              [`over ${window}`, `atelier:interactive_pictures_slow:ratio_rate${window}{${HERE}} / 0.01`] as const,
          ),
        }),
      ],
    },
    {
      title: "What callers see",
      panels: [
        lines({
          title: "Requests for pictures by status",
          about:
            "5xx are ours (503 is overload or no worker), 4xx are callers' mistakes, 429 a tenant's own limits, 499 callers that went away before their picture came.",
          aboutZh: "5xx 是我方失败（503 为过载或无 worker），4xx 是调用方错误，429 是租户限额，499 是调用方提前离开。",
          unit: "reqps",
          stacked: true,
          queries: [
            ["{{status}}", `sum by (status) (rate(atelier_gateway_requests_total{${PICTURES}}[$__rate_interval]))`],
          ],
        }),
        lines({
          title: "Time until the picture is there",
          about:
            "Of interactive requests that were answered with pictures, whole request. The objective is 5 s for 99 of 100.",
          aboutZh: "交互出图整体耗时；目标是 99 % 在 5 秒以内。",
          unit: "s",
          thresholds: { below: "green", from: [[5, "red"]] },
          queries: [0.5, 0.95, 0.99].map(
            (quantile) =>
              [
                `p${quantile * 100}`,
                `histogram_quantile(${quantile}, sum by (le) (rate(atelier_gateway_request_duration_seconds_bucket{tenant_class="interactive", cache!="none", ${HERE}}[$__rate_interval])))`,
              ] as const,
          ),
        }),
        lines({
          title: "Where pictures came from",
          about:
            "hit: kept from before; shared: made once for several that asked at once; approximate: begun from a similar one; miss: made.",
          aboutZh: "hit 命中缓存；shared 同时请求共用；approximate 由相似图继续；miss 新生成。",
          unit: "reqps",
          stacked: true,
          queries: [
            ["{{outcome}}", `sum by (outcome) (rate(atelier_gateway_cache_requests_total{${HERE}}[$__rate_interval]))`],
          ],
        }),
      ],
    },
    {
      title: "What stands in the way",
      panels: [
        lines({
          title: "Work that waits for each worker",
          about:
            "Device seconds of interactive and standard work before a picture that comes now, if a pool's work were spread evenly. Autoscaling holds it near its target; if it stays above, look at Fleet.",
          aboutZh: "每个 worker 前排队的工作量（设备秒）。自动扩缩应将其保持在目标附近。",
          unit: "s",
          thresholds: { below: "green", from: [[10, "red"]] },
          queries: [["{{pool}}", `atelier:pool_backlog_seconds_per_worker{${HERE}}`]],
        }),
        lines({
          title: "Workers by state",
          about: "draining ones finish or hand over what they have; not ready ones load models, or cannot.",
          aboutZh: "draining 正在交接；not_ready 正在加载模型或加载失败。",
          unit: "short",
          stacked: true,
          queries: [["{{pool}} {{state}}", `atelier:pool_workers{${HERE}}`]],
        }),
        lines({
          title: "Refused at the door, and tried again",
          about:
            "Requests refused since there was too much work before them (queue) or no time left (deadline), and attempts after a worker's failure, by its code. Retries are not failures: callers got their picture.",
          aboutZh: "因排队过长或期限不足被拒绝的请求，以及 worker 失败后的重试（重试不等于失败）。",
          unit: "reqps",
          queries: [
            [
              "refused: {{reason}}",
              `sum by (reason) (rate(atelier_gateway_admission_refusals_total{${HERE}}[$__rate_interval]))`,
            ],
            ["retried: {{reason}}", `sum by (reason) (rate(atelier_gateway_retries_total{${HERE}}[$__rate_interval]))`],
          ],
        }),
      ],
    },
  ],
};
