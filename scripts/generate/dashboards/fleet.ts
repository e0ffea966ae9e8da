import { type Board, HERE, lines, stat } from "./panels.ts";

const IN_POOL = `pool=~"$pool", ${HERE}`;
const ratePer = (metric: string, by: string, more = "") =>
  `sum by (${by}) (rate(${metric}{${more}${IN_POOL}}[$__rate_interval]))`;

export const fleet: Board = {
  uid: "atelier-fleet",
  title: "Fleet",
  about:
    "Each worker and its GPU: what it is doing, what it holds, and what NVIDIA's DCGM exporter says of the device beside it.",
  aboutZh: "每个 worker 及其 GPU：在做什么、占用什么，旁边是 DCGM 的设备指标。",
  variables: ["pool"],
  rows: [
    {
      title: "Now",
      panels: [
        stat({
          title: "Workers that take requests",
          about: "As the gateways see them.",
          aboutZh: "网关所见的可用 worker。",
          unit: "short",
          width: 6,
          thresholds: { below: "red", from: [[1, "green"]] },
          query: `sum(atelier:pool_workers{state="ready", ${IN_POOL}})`,
        }),
        stat({
          title: "Busy, on average",
          about:
            "Share of the last ten seconds in which the denoise lanes ran, over all workers. Near 1 with work that waits: the pool is too small. Near 0: too large.",
          aboutZh: "去噪通道平均繁忙度。接近 1 且有积压说明池太小，接近 0 说明太大。",
          unit: "percentunit",
          width: 6,
          query: `avg(atelier_worker_denoise_busy_ratio{${IN_POOL}})`,
        }),
        stat({
          title: "Requests in flight",
          about: "Accepted by workers and not finished.",
          aboutZh: "worker 已接收未完成的请求。",
          unit: "short",
          width: 6,
          query: `sum(atelier_worker_requests_in_flight{${IN_POOL}})`,
        }),
        stat({
          title: "Restarts within an hour",
          about: "Of workers' processes. More than three open a ticket.",
          aboutZh: "一小时内 worker 进程重启次数，超过 3 次生成工单。",
          unit: "short",
          width: 6,
          thresholds: {
            below: "green",
            from: [
              [1, "yellow"],
              [4, "red"],
            ],
          },
          query: `sum(atelier:worker_restarts:changes1h{${HERE}})`,
        }),
      ],
    },
    {
      title: "What each worker does",
      panels: [
        lines({
          title: "Busy",
          about:
            "One line for each worker. A worker at 0 while others have work is idle for a reason: no model, ejected, draining.",
          aboutZh: "每个 worker 一条线。别人忙而它为 0，说明无模型、被剔除或正在下线。",
          unit: "percentunit",
          max: 1,
          queries: [["{{pool}} {{instance}}", `atelier_worker_denoise_busy_ratio{${IN_POOL}}`]],
        }),
        lines({
          title: "Accepted work",
          about:
            "Predicted device time of what each worker has accepted. Placement keeps these close together among equal GPUs.",
          aboutZh: "每个 worker 已接收工作的预计设备时间；同型号之间应接近。",
          unit: "s",
          queries: [
            ["{{pool}} {{instance}}", `sum by (pool, instance) (atelier_worker_backlog_device_seconds{${IN_POOL}})`],
          ],
        }),
        lines({
          title: "Accepted work by class",
          about: "Over the whole pool. Bulk work waits behind interactive work: a lot of it is no trouble.",
          aboutZh: "按优先级的已接收工作量。批量任务排在交互之后，多也无妨。",
          unit: "s",
          stacked: true,
          queries: [["{{class}}", `sum by (class) (atelier_worker_backlog_device_seconds{${IN_POOL}})`]],
        }),
        lines({
          title: "Placed on each worker",
          about:
            "Requests that gateways placed there, by its address. Ejections are workers left out after failures in a row.",
          aboutZh: "网关派到各 worker 的请求；ejected 表示连续失败后被暂时剔除。",
          unit: "reqps",
          queries: [
            ["{{worker}}", `sum by (worker) (rate(atelier_gateway_placements_total{${HERE}}[$__rate_interval]))`],
            [
              "ejected: {{worker}}",
              `sum by (worker) (rate(atelier_gateway_worker_ejections_total{${HERE}}[$__rate_interval]))`,
            ],
          ],
        }),
        lines({
          title: "Ended requests by outcome",
          about:
            "ok, or the code of the error. CANCELLED are callers that went away; OUT_OF_MEMORY and NUMERIC_FAILURE are about the model or the device.",
          aboutZh: "按结果统计；OUT_OF_MEMORY 和 NUMERIC_FAILURE 与模型或设备有关。",
          unit: "reqps",
          stacked: true,
          queries: [["{{outcome}}", ratePer("atelier_worker_requests_total", "outcome")]],
        }),
        lines({
          title: "Moved and interrupted",
          about:
            "Moves hand a half-made picture to another worker (drains, spot notices); preemptions let urgent work go first. Both cost little: a picture goes on at the step where it stood.",
          aboutZh: "moves 是把半成品交给其他 worker；preemptions 是让位给紧急请求。图会从原步骤继续。",
          unit: "ops",
          queries: [
            ["moved {{direction}}", ratePer("atelier_worker_moves_total", "direction")],
            ["preempted", `sum(rate(atelier_worker_preemptions_total{${IN_POOL}}[$__rate_interval]))`],
          ],
        }),
      ],
    },
    {
      title: "Models and memory",
      panels: [
        lines({
          title: "Workers that hold each model",
          about: "Open and warm. A model at 0 is loaded on its first request, or cannot be loaded.",
          aboutZh: "各模型已加载的 worker 数。为 0 表示首次请求时加载，或无法加载。",
          unit: "short",
          queries: [["{{model}}", `sum by (model) (atelier_worker_model_resident{${IN_POOL}})`]],
        }),
        lines({
          title: "Loads of models",
          about:
            "A model that comes and goes has too little memory beside the others: pin it to a pool. Failed loads are named in the workers' logs.",
          aboutZh: "模型加载次数。频繁加载说明显存不足，应固定到某个池。",
          unit: "ops",
          queries: [["{{model}} {{outcome}}", ratePer("atelier_worker_model_loads_total", "model, outcome")]],
        }),
        lines({
          title: "Memory of models",
          about:
            "Weights and the largest runs so far, as the worker's own budget counts them. What the device says is below.",
          aboutZh: "worker 预算内统计的模型显存占用；设备实际值见下方。",
          unit: "bytes",
          queries: [["{{pool}} {{instance}}", `atelier_worker_memory_counted_bytes{${IN_POOL}}`]],
        }),
      ],
    },
    {
      title: "The devices (NVIDIA's DCGM exporter)",
      panels: [
        lines({
          title: "GPU in use",
          about:
            "Share of the time in which a kernel ran. Beside Busy: busy workers on idle GPUs wait for their CPU or disk.",
          aboutZh: "GPU 利用率。worker 忙而 GPU 闲，说明瓶颈在 CPU 或磁盘。",
          unit: "percent",
          max: 100,
          queries: [["{{Hostname}} GPU {{gpu}}", "DCGM_FI_DEV_GPU_UTIL"]],
        }),
        lines({
          title: "GPU memory in use",
          about: "MiB of the frame buffer. Far above the worker's own count, something else is on the device.",
          aboutZh: "显存占用（MiB）。远高于 worker 统计值时，设备上有其他程序。",
          unit: "decmbytes",
          queries: [["{{Hostname}} GPU {{gpu}}", "DCGM_FI_DEV_FB_USED"]],
        }),
        lines({
          title: "GPU temperature",
          about: "From about 85 °C on devices slow themselves down.",
          aboutZh: "约 85 °C 以上会降频。",
          unit: "celsius",
          thresholds: { below: "green", from: [[85, "red"]] },
          queries: [["{{Hostname}} GPU {{gpu}}", "DCGM_FI_DEV_GPU_TEMP"]],
        }),
        lines({
          title: "GPU power",
          about: "Watts. A device far below the others at the same work is slowed down, or idle.",
          aboutZh: "功耗（瓦）。同样负载下明显偏低，说明被限速或空闲。",
          unit: "watt",
          queries: [["{{Hostname}} GPU {{gpu}}", "DCGM_FI_DEV_POWER_USAGE"]],
        }),
        lines({
          title: "GPU clock",
          about: "Of the streaming multiprocessors, in MHz.",
          aboutZh: "SM 时钟频率（MHz）。",
          unit: "short",
          queries: [["{{Hostname}} GPU {{gpu}}", "DCGM_FI_DEV_SM_CLOCK"]],
        }),
        lines({
          title: "Last XID error",
          about:
            "0 is none. 13, 31, 43 and 45 follow a program's fault; every other number is the device's or its driver's, and GpuUnhealthy opens a ticket.",
          aboutZh: "最近的 XID 错误，0 表示无；除 13、31、43、45 外均为硬件或驱动问题。",
          unit: "short",
          thresholds: { below: "green", from: [[1, "red"]] },
          queries: [["{{Hostname}} GPU {{gpu}}", "DCGM_FI_DEV_XID_ERRORS"]],
        }),
      ],
    },
  ],
};
