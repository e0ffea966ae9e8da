/** `npm run control-plane`: a Kubernetes control plane on loopback until Ctrl-C, for trying charts and autoscaling. */
import { copyFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { untilAskedToStop } from "@atelier/lifecycle";
import { NotToBeHad } from "../services/cache-folder.ts";
import { DaemonEnded } from "../services/daemons.ts";
import { startControlPlane } from "./control-plane.ts";
import { helm, kubernetes } from "./programs.ts";

const HELP = `npm run control-plane [-- options]

Starts etcd, the Kubernetes API server, its controllers and its scheduler on this machine until Ctrl-C, with nodes that
have GPUs and run nothing (KWOK): what a chart makes is admitted, scheduled and scaled for real.
在本机启动 Kubernetes 控制平面（节点由 KWOK 模拟，带 GPU，不运行容器），按 Ctrl-C 停止。

  --nodes <n>        nodes (3)
  --gpus <n>         GPUs of each (4)
  --kubeconfig <f>   where to write the kubeconfig (./kubeconfig)
  -h, --help         print this

The programs are built from Go modules once, into ~/.cache/atelier (or the folder that ATELIER_CACHE names): some 6
minutes on 4 cores, 10 GB of disk meanwhile and 0.4 GB afterwards. Everything listens on 127.0.0.1.
程序首次使用时由 Go 编译并缓存，4 核约 6 分钟。

Examples · 示例:
  npm run control-plane
  npm run control-plane -- --nodes 1 --gpus 8`;

class Usage extends Error {}

const stopping = untilAskedToStop();
try {
  process.exitCode = await run();
} catch (error) {
  const usage = error instanceof Usage || (error instanceof TypeError && "code" in error);
  if (!(error instanceof NotToBeHad || error instanceof DaemonEnded || usage)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = usage ? 2 : 1;
}

async function run(): Promise<number> {
  const { values } = parseArgs({
    options: {
      nodes: { type: "string", default: "3" },
      gpus: { type: "string", default: "4" },
      kubeconfig: { type: "string", default: "kubeconfig" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) {
    console.log(HELP);
    return 0;
  }
  const gpus = count("gpus", values.gpus);
  const nodes = Array.from({ length: count("nodes", values.nodes) }, (_, i) => ({
    name: `node-${i + 1}`,
    gpus,
    labels: { "nvidia.com/gpu.product": "NVIDIA-A10" },
  }));
  const tools = { kubectl: (await kubernetes()).kubectl.path, helm: (await helm()).path };
  const plane = await startControlPlane({ nodes });
  try {
    await copyFile(plane.kubeconfig, values.kubeconfig);
    console.log(`Kubernetes at ${plane.url}; in another terminal:`);
    console.log(`  export KUBECONFIG=${values.kubeconfig}`);
    console.log(`  alias kubectl=${tools.kubectl} helm=${tools.helm}`);
    console.log("  kubectl get nodes");
    console.log("Ctrl-C stops it · 按 Ctrl-C 停止");
    await stopping;
    return 0;
  } finally {
    await plane.stop();
  }
}

function count(name: string, text: string): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= 1 && value <= 1000) return value;
  throw new Usage(`--${name} ${text}: it must be a whole number from 1 to 1000`);
}
