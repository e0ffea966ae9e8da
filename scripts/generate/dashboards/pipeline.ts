import { type Board, HERE, lines, stat } from "./panels.ts";

const IN_POOL = `pool=~"$pool", ${HERE}`;
const OF_MODEL = `model=~"$model", ${IN_POOL}`;

const quantile = (q: number, metric: string, by: string, filter: string) =>
  `histogram_quantile(${q}, sum by (${by === "" ? "le" : `le, ${by}`}) (rate(${metric}_bucket{${filter}}[$__rate_interval])))`;
const mean = (metric: string, by: string, filter: string) => {
  const sum = (part: string) =>
    `sum ${by === "" ? "" : `by (${by}) `}(rate(${metric}_${part}{${filter}}[$__rate_interval]))`;
  return `${sum("sum")} / ${sum("count")}`;
};

export const pipeline: Board = {
  uid: "atelier-pipeline",
  title: "Pipeline",
  about: "Where the time of a picture goes: waiting, text, denoising, decoding; and how well the steps are batched.",
  aboutZh: "一张图的时间花在哪里：排队、文本编码、去噪、解码，以及步骤合批效果。",
  variables: ["pool", "model"],
  rows: [
    {
      title: "From the door to the first step",
      panels: [
        lines({
          title: "Until the first step",
          about:
            "From a request's arrival at the gateway until a GPU works on it. What grows here is waiting, not computing.",
          aboutZh: "从请求到达网关到 GPU 开始计算。这里增长的是等待。",
          unit: "s",
          queries: [
            ["{{class}} p50", quantile(0.5, "atelier_gateway_time_to_first_step_seconds", "class", HERE)],
            ["{{class}} p95", quantile(0.95, "atelier_gateway_time_to_first_step_seconds", "class", HERE)],
          ],
        }),
        lines({
          title: "Wait in the workers' queues",
          about: "Between a worker's acceptance and the first step, by class. Bulk waits longest, by design.",
          aboutZh: "worker 接收到首步之间的等待，按优先级；批量等待最久属设计如此。",
          unit: "s",
          queries: [["{{class}} p95", quantile(0.95, "atelier_worker_queue_wait_seconds", "class", IN_POOL)]],
        }),
        lines({
          title: "Wait at the gateway for a worker",
          about: "Zero but for moments in which no worker has room or the one that has it restarts.",
          aboutZh: "网关等待可用 worker 的时间，正常应接近 0。",
          unit: "s",
          queries: [
            ["p95", quantile(0.95, "atelier_gateway_placement_wait_seconds", "", HERE)],
            ["predicted wait p95", quantile(0.95, "atelier_gateway_predicted_wait_seconds", "", HERE)],
          ],
        }),
      ],
    },
    {
      title: "Stages",
      panels: [
        lines({
          title: "Time in each stage, on average",
          about:
            "Stacked: a picture's life in a worker. Denoising is most of it; if decoding or text grows, look at the CPU.",
          aboutZh: "各阶段平均耗时（堆叠）。去噪应占大头；若解码或文本增长，检查 CPU。",
          unit: "s",
          stacked: true,
          queries: [["{{stage}}", mean("atelier_worker_stage_seconds", "stage", IN_POOL)]],
        }),
        lines({
          title: "Time in each stage, the slowest twentieth",
          about: "p95 by stage, waiting included.",
          aboutZh: "各阶段 p95（含等待）。",
          unit: "s",
          queries: [["{{stage}}", quantile(0.95, "atelier_worker_stage_seconds", "stage", IN_POOL)]],
        }),
        lines({
          title: "Time of one U-Net run",
          about:
            "One step of a whole batch. It grows with the batch, and with the size of pictures; on equal work it shows a device that slows down.",
          aboutZh: "一次 U-Net 批处理耗时。负载相同时变慢说明设备降速。",
          unit: "s",
          queries: [
            ["{{model}} p50", quantile(0.5, "atelier_worker_step_seconds", "model", OF_MODEL)],
            ["{{model}} p95", quantile(0.95, "atelier_worker_step_seconds", "model", OF_MODEL)],
          ],
        }),
      ],
    },
    {
      title: "How well steps are batched",
      panels: [
        stat({
          title: "Batch occupancy",
          about:
            "Rows that a step batch used of those that it could have had. High under load is what this system is for; low when there is little to do is no trouble.",
          aboutZh: "步骤合批占用率。高负载时应高；空闲时低无妨。",
          unit: "percentunit",
          width: 4,
          query: mean("atelier_worker_step_batch_occupancy_ratio", "", IN_POOL),
        }),
        stat({
          title: "Rows computed a second",
          about: "Latents through U-Nets. Nothing is padded: each of them is somebody's picture.",
          aboutZh: "每秒计算的 U-Net 行数；没有填充行。",
          unit: "ops",
          width: 4,
          query: `sum(rate(atelier_worker_rows_total{${IN_POOL}}[$__rate_interval]))`,
        }),
        lines({
          title: "Rows in one U-Net run",
          about:
            "An image takes two with guidance, one without. More rows make more pictures per second, up to the device's knee.",
          aboutZh: "每次 U-Net 运行的行数；有引导时一图两行。",
          unit: "short",
          queries: [["{{model}}", mean("atelier_worker_step_batch_rows", "model", OF_MODEL)]],
        }),
        lines({
          title: "Turns by class",
          about: "Who led the step batches. A class that starves gets a turn each ATELIER_AGEING_MS.",
          aboutZh: "由哪个优先级主导步骤批次；被饿的等级会定期获得一轮。",
          unit: "ops",
          stacked: true,
          queries: [["{{class}}", `sum by (class) (rate(atelier_worker_turns_total{${IN_POOL}}[$__rate_interval]))`]],
        }),
      ],
    },
    {
      title: "Predictions, checkpoints, prompts",
      panels: [
        lines({
          title: "Actual time over predicted time",
          about:
            "1 is right. Admission, placement and autoscaling believe these predictions; far from 1 for long, a device is slower than it was.",
          aboutZh: "实际/预测耗时，1 为准确。长期偏离说明设备变慢。",
          unit: "short",
          thresholds: { below: "green", from: [[2, "red"]] },
          queries: [
            ["p50", quantile(0.5, "atelier_gateway_prediction_ratio", "", HERE)],
            ["p95", quantile(0.95, "atelier_gateway_prediction_ratio", "", HERE)],
          ],
        }),
        lines({
          title: "Checkpoints sent",
          about: "States of half-made pictures that workers send to gateways, so that another worker can go on.",
          aboutZh: "worker 发往网关的半成品检查点流量。",
          unit: "Bps",
          queries: [
            ["bytes a second", `sum(rate(atelier_worker_checkpoint_bytes_total{${IN_POOL}}[$__rate_interval]))`],
          ],
        }),
        lines({
          title: "Prompts by where their embedding came from",
          about: "hit: kept from before; shared: with another that waited; miss: encoded.",
          aboutZh: "提示词嵌入来源：hit 缓存，shared 共用，miss 重新编码。",
          unit: "ops",
          stacked: true,
          queries: [
            ["{{outcome}}", `sum by (outcome) (rate(atelier_worker_embeddings_total{${IN_POOL}}[$__rate_interval]))`],
          ],
        }),
      ],
    },
  ],
};
