import { type Board, HERE, lines, stat } from "./panels.ts";

const rate = (metric: string, by: string, filter = "") =>
  `sum by (${by}) (rate(${metric}{${filter}${HERE}}[$__rate_interval]))`;

export const tenants: Board = {
  uid: "atelier-tenants",
  title: "Tenants",
  about:
    "Priority classes, limits and books of use. No metric is named after a tenant, so that no caller can add series: who used what is in GET /v1/usage.",
  aboutZh: "优先级、限额与记账。指标不含租户名（避免序列膨胀），用量明细见 GET /v1/usage。",
  rows: [
    {
      title: "Classes",
      panels: [
        lines({
          title: "Requests by class",
          about: "The priority of the key or tenant that asked.",
          aboutZh: "按优先级的请求。",
          unit: "reqps",
          stacked: true,
          queries: [["{{tenant_class}}", rate("atelier_gateway_requests_total", "tenant_class")]],
        }),
        lines({
          title: "Answers with pictures by class, slowest twentieth",
          about: "p95 of the whole request.",
          aboutZh: "各优先级出图耗时 p95。",
          unit: "s",
          queries: [
            [
              "{{tenant_class}}",
              `histogram_quantile(0.95, sum by (le, tenant_class) (rate(atelier_gateway_request_duration_seconds_bucket{cache!="none", ${HERE}}[$__rate_interval])))`,
            ],
          ],
        }),
        lines({
          title: "Failures by class",
          about: "5xx a second: whose requests fail. The overview says how bad it is.",
          aboutZh: "各优先级的 5xx 失败。",
          unit: "reqps",
          stacked: true,
          queries: [
            [
              "{{tenant_class}} {{status}}",
              rate("atelier_gateway_requests_total", "tenant_class, status", 'status=~"5..", '),
            ],
          ],
        }),
      ],
    },
    {
      title: "Limits",
      panels: [
        lines({
          title: "Refused by a tenant's limit",
          about:
            "429: rates, concurrency, and the month's pictures or device seconds. A tenant that meets its limits is no fault of ours; a tenant that does so all day wants another plan.",
          aboutZh: "因租户限额被拒（429）：速率、并发、月度额度。",
          unit: "reqps",
          width: 12,
          stacked: true,
          queries: [["{{limit}}", rate("atelier_gateway_tenant_refusals_total", "limit")]],
        }),
        lines({
          title: "Refused for other reasons of the caller's",
          about:
            "400 invalid, 401 no or an unknown key, 403 a key without the right, 404, 409, 413. A sudden rise of 401 is a rotated key or somebody who guesses.",
          aboutZh: "调用方原因的拒绝；401 突增可能是换钥匙或有人猜测。",
          unit: "reqps",
          width: 12,
          stacked: true,
          queries: [["{{status}}", rate("atelier_gateway_requests_total", "status", 'status=~"4..", ')]],
        }),
      ],
    },
    {
      title: "Keys and books",
      panels: [
        stat({
          title: "Keys known",
          about: "API keys that each gateway knows.",
          aboutZh: "网关已知的 API key 数。",
          unit: "short",
          width: 6,
          query: `max(atelier_gateway_api_keys{${HERE}})`,
        }),
        stat({
          title: "Answered and not booked yet",
          about: "Grows while Redis is away. A gateway that ends meanwhile takes its part with it.",
          aboutZh: "已应答未记账的请求；Redis 不可达时增长。",
          unit: "short",
          width: 6,
          thresholds: { below: "green", from: [[100, "red"]] },
          query: `sum(atelier_gateway_usage_unbooked_requests{${HERE}})`,
        }),
        lines({
          title: "Requests with an idempotency key",
          about: "replayed ones were answered from before: retries of callers that cost nothing.",
          aboutZh: "带幂等键的请求；replayed 为重放。",
          unit: "reqps",
          width: 12,
          stacked: true,
          queries: [["{{outcome}}", rate("atelier_gateway_idempotency_total", "outcome")]],
        }),
      ],
    },
  ],
};
