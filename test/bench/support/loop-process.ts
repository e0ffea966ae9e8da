import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { end, whileRunning } from "./child.ts";
import type { PictureRequest } from "./picture-request.ts";

const entry = join(import.meta.dirname, "loop-engine.ts");
const START_MAX_MS = 120_000;
const PICTURE_MAX_MS = 300_000;

/** A one-at-a-time onnxruntime loop in a process of its own, with its model loaded. */
export class LoopProcess {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, (file: Uint8Array) => void>();
  #asked = 0;

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.setMaxListeners(0); // one for each request in flight
    child.on("message", ({ id, file }: { id: number; file: Uint8Array }) => {
      this.#waiting.get(id)!(file);
      this.#waiting.delete(id);
    });
  }

  static async start({ bundle, threads }: { bundle: string; threads: number }): Promise<LoopProcess> {
    const child = fork(entry, [bundle, String(threads)], { stdio: ["ignore", 2, 2, "ipc"], serialization: "advanced" });
    await whileRunning(child, once(child, "message"), { name: "the loop", timeoutMs: START_MAX_MS });
    return new LoopProcess(child);
  }

  draw(request: PictureRequest): Promise<Uint8Array> {
    const id = this.#asked++;
    const drawn = new Promise<Uint8Array>((resolve) => this.#waiting.set(id, resolve));
    this.#child.send({ id, request });
    return whileRunning(this.#child, drawn, { name: "the loop", timeoutMs: PICTURE_MAX_MS });
  }

  async stop(): Promise<void> {
    this.#child.disconnect();
    await end(this.#child);
  }
}
