import { type Board, HERE, lines, stat } from "./panels.ts";

const rate = (metric: string, by: string) => `sum by (${by}) (rate(${metric}{${HERE}}[$__rate_interval]))`;
const total = (metric: string, filter = "") => `sum(rate(${metric}{${filter}${HERE}}[$__rate_interval]))`;

export const cacheAndCost: Board = {
  uid: "atelier-cache-and-cost",
  title: "Cache and cost",
  about: "What a picture costs, and how much of the work a cache or an earlier step saved.",
  aboutZh: "每张图的成本，以及缓存和断点续算节省了多少。",
  rows: [
    {
      title: "Cost",
      panels: [
        stat({
          title: "Cost of a picture",
          about:
            "Price of the device time over pictures delivered, those from the cache among them. 0 where ATELIER_PRICE_PER_DEVICE_HOUR is not set.",
          aboutZh: "设备时间价格除以交付图片数（含缓存）。未设置单价时为 0。",
          unit: "short",
          decimals: 5,
          width: 6,
          query: `${total("atelier_gateway_image_cost_total")} / ${total("atelier_gateway_images_total")}`,
        }),
        stat({
          title: "Device time of a picture",
          about: "Device seconds over pictures delivered.",
          aboutZh: "每张交付图片的设备秒数。",
          unit: "s",
          decimals: 3,
          width: 6,
          query: `${total("atelier_gateway_device_seconds_total")} / ${total("atelier_gateway_images_total")}`,
        }),
        stat({
          title: "Answers from the cache",
          about:
            "Share of the answers with pictures for which nothing was computed: hits, and those that shared another's making.",
          aboutZh: "无需计算的应答占比（命中或共用）。",
          unit: "percentunit",
          width: 6,
          query: `(${total("atelier_gateway_cache_requests_total", 'outcome=~"hit|shared", ')} or vector(0)) / ${total("atelier_gateway_cache_requests_total")}`,
        }),
        stat({
          title: "Steps that were left out",
          about:
            "Denoising steps a second that no GPU made: begun from a similar picture, or gone on with from a checkpoint.",
          aboutZh: "每秒省去的去噪步数（相似图续算或检查点恢复）。",
          unit: "ops",
          width: 6,
          query: `${total("atelier_gateway_approximate_steps_reused_total")} + ${total("atelier_gateway_resumed_steps_total")}`,
        }),
        lines({
          title: "Cost an hour, by model",
          about: "In the currency that is set; what the devices that idle cost is not in it.",
          aboutZh: "各模型每小时成本；不含空闲设备成本。",
          unit: "short",
          stacked: true,
          queries: [
            ["{{model}} {{currency}}", `3600 * ${rate("atelier_gateway_image_cost_total", "model, currency")}`],
          ],
        }),
        lines({
          title: "Device seconds a second, by model",
          about: "How many devices the pictures kept busy.",
          aboutZh: "图片生成占用的设备数。",
          unit: "short",
          stacked: true,
          queries: [["{{model}} {{cache}}", rate("atelier_gateway_device_seconds_total", "model, cache")]],
        }),
        lines({
          title: "Pictures delivered",
          about: "By model and format. Those of simulated devices are marked.",
          aboutZh: "按模型与格式的交付图片；simulated 为模拟设备。",
          unit: "ops",
          stacked: true,
          queries: [
            [
              "{{model}} {{format}} simulated={{simulated}}",
              rate("atelier_gateway_images_total", "model, format, simulated"),
            ],
          ],
        }),
      ],
    },
    {
      title: "The exact cache",
      panels: [
        lines({
          title: "Answers by where they came from",
          about: "See the header x-atelier-cache.",
          aboutZh: "应答来源，见 x-atelier-cache 头。",
          unit: "reqps",
          stacked: true,
          queries: [["{{outcome}}", rate("atelier_gateway_cache_requests_total", "outcome")]],
        }),
        lines({
          title: "What became of results",
          about: "kept, or why not: asked too rarely, of another bundle, not exact, purged meanwhile.",
          aboutZh: "结果去向：保留，或未保留的原因。",
          unit: "ops",
          stacked: true,
          queries: [["{{outcome}}", rate("atelier_gateway_cache_results_total", "outcome")]],
        }),
        lines({
          title: "Memory of the gateways' caches",
          about: "Results at hand in each gateway; ATELIER_CACHE_MEMORY is the limit.",
          aboutZh: "各网关内存缓存大小。",
          unit: "bytes",
          queries: [["{{instance}}", `atelier_gateway_cache_memory_bytes{${HERE}}`]],
        }),
      ],
    },
    {
      title: "Beginning from similar pictures, and Redis",
      panels: [
        lines({
          title: "Lookups for a similar picture",
          about: "used, or why not. Only requests that allow it are looked up.",
          aboutZh: "相似图查找结果；仅限允许的请求。",
          unit: "ops",
          stacked: true,
          queries: [["{{outcome}}", rate("atelier_gateway_approximate_lookups_total", "outcome")]],
        }),
        lines({
          title: "Latents that others may begin from",
          about: "How many each gateway knows.",
          aboutZh: "各网关已知的可复用潜变量数。",
          unit: "short",
          queries: [["{{instance}}", `atelier_gateway_approximate_entries{${HERE}}`]],
        }),
        lines({
          title: "Redis",
          about:
            "1 while it answers; failures by kind. Without it nothing fails: pictures are made again, and limits hold for each gateway alone.",
          aboutZh: "Redis 可达性与失败。不可达时不会报错，只是更慢。",
          unit: "short",
          queries: [
            ["answers {{instance}}", `atelier_gateway_redis_up{${HERE}}`],
            ["failures a second: {{kind}}", rate("atelier_gateway_redis_failures_total", "kind")],
          ],
        }),
      ],
    },
  ],
};
