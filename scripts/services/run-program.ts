import { spawn } from "node:child_process";

export interface Outcome {
  readonly code: number;
  /** Standard output, and what it said of errors after it. */
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `command` to its end, with `input` on its standard input. Its own failure is in the outcome; a program that is not there has the code 127. */
export function runProgram(
  command: string,
  args: readonly string[],
  { cwd, env = {}, input }: { cwd?: string; env?: Readonly<Record<string, string>>; input?: string | undefined } = {},
): Promise<Outcome> {
  const child = spawn(command, args, {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, LC_ALL: "C", ...env },
    ...(cwd === undefined ? {} : { cwd }),
  });
  child.stdin.on("error", () => {}); // it ended without reading: its outcome says why
  child.stdin.end(input ?? "");
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  return new Promise((resolve) => {
    child.once("error", (error) => resolve({ code: 127, stdout, stderr: error.message }));
    child.once("close", (code) => resolve({ code: code ?? 1, stdout, stderr }));
  });
}
