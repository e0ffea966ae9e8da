import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { atEnd } from "./ends.ts";

/** A gateway as a process of its own, which a test can kill. With these variables of ours and no others. */
export async function spawnGateway(env: Record<string, string>): Promise<{ url: string; child: ChildProcess }> {
  const main = fileURLToPath(import.meta.resolve("@atelier/gateway/main"));
  const child = fork(main, {
    env: { PATH: process.env["PATH"], ATELIER_LISTEN: "127.0.0.1:0", ...env },
    silent: true,
  });
  atEnd(() => child.kill("SIGKILL"));
  const url = await new Promise<string>((resolve, reject) => {
    child.once("exit", (code) => reject(new Error(`the gateway ended with ${code}`)));
    let address = "";
    child.on("message", (message: { type: string; address?: string }) => {
      if (message.type === "listening") address = message.address!;
      if (message.type === "ready") resolve(address);
    });
  });
  return { url, child };
}
