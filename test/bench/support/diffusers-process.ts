import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { end, whileRunning } from "./child.ts";

const root = join(import.meta.dirname, "../../..");
const START_MAX_MS = 180_000;
const PICTURE_MAX_MS = 180_000;

export interface DiffusersCall {
  readonly prompt: string;
  readonly negative_prompt: string;
  readonly steps: number;
  readonly guidance_scale: number;
  readonly width: number;
  readonly height: number;
  readonly seed: number;
  /** File that gets the picture: RGB bytes, row-major. */
  readonly out: string;
}

/** diffusers on torch in a process of its own, with its model loaded. */
export class DiffusersProcess {
  readonly versions: Readonly<Record<string, string>>;
  readonly #child: ChildProcess;
  readonly #answers: Answers;

  private constructor(child: ChildProcess, answers: Answers, versions: Record<string, string>) {
    this.#child = child;
    this.#answers = answers;
    this.versions = versions;
  }

  /** @param bundle the ONNX bundle; its diffusers layout, same weights, is written to `folder`. */
  static async start(options: { bundle: string; folder: string; threads: number }): Promise<DiffusersProcess> {
    const { bundle, folder, threads } = options;
    const environment = execFileSync("bash", [join(root, "scripts/python-env.sh")], { encoding: "utf8" }).trim();
    const python = join(environment, "bin/python");
    const env = {
      ...process.env,
      PYTHONPATH: join(root, "services/trainer"),
      OMP_NUM_THREADS: String(threads),
      TRANSFORMERS_VERBOSITY: "error",
      HF_HUB_DISABLE_PROGRESS_BARS: "1",
    };
    execFileSync(python, ["-m", "atelier_trainer.to_diffusers", bundle, folder], { env, stdio: ["ignore", 2, 2] });

    const script = join(root, "test/bench/diffusers_engine.py");
    const child = spawn(python, ["-W", "ignore", script, folder, String(threads)], { env, stdio: ["pipe", "pipe", 2] });
    const answers = answersOf(child.stdout!);
    const first = await whileRunning(child, answers(), { name: "diffusers", timeoutMs: START_MAX_MS });
    return new DiffusersProcess(child, answers, first.ready!);
  }

  /** Milliseconds that the pipeline took for one picture. */
  async draw(call: DiffusersCall): Promise<number> {
    this.#child.stdin!.write(`${JSON.stringify(call)}\n`);
    const answer = await whileRunning(this.#child, this.#answers(), { name: "diffusers", timeoutMs: PICTURE_MAX_MS });
    return answer.ms!;
  }

  stop(): Promise<void> {
    return end(this.#child);
  }
}

/** Gives the script's next line. */
type Answers = () => Promise<{ ready?: Record<string, string>; ms?: number }>;

function answersOf(input: Readable): Answers {
  const lines = createInterface({ input })[Symbol.asyncIterator]();
  return async () => {
    const { value, done } = await lines.next();
    if (done === true) throw new Error("diffusers ended; what it said is above");
    return JSON.parse(value);
  };
}
