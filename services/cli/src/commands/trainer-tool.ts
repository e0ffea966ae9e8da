import { type ChildProcess, spawn } from "node:child_process";
import { constants } from "node:os";
import { join } from "node:path";
import { CliError } from "../cli-error.ts";
import { onStopSignals } from "../terminal/signals.ts";

export interface TrainerToolOptions {
  /** The repository. */
  readonly root: string;
  /** A command of `python -m atelier_trainer`. */
  readonly command: "import" | "quantize";
  /** Passed on as they are: the tool knows its options, and says what it does not know. */
  readonly args: readonly string[];
  /** Where the user is; relative paths among `args` begin here. */
  readonly cwd: string;
}

/**
 * Runs one of the trainer's tools, which are Python, in the environment that its requirements name. That environment is
 * built at the first call. What the tool prints is passed on as it comes. Resolves to its exit code; 130 after Ctrl-C.
 *
 * @throws CliError when there is no Python to be had, saying what is needed.
 */
export async function trainerTool({ root, command, args, cwd }: TrainerToolOptions): Promise<number> {
  let running: ChildProcess | undefined;
  let stopped = false;
  // The terminal sends Ctrl-C to every process in front; what is sent to us alone is passed on.
  const silence = onStopSignals({
    first: () => {
      stopped = true;
      running?.kill("SIGTERM");
    },
    again: () => running?.kill("SIGKILL"),
  });
  try {
    running = spawn("bash", [join(root, "scripts/python-env.sh")], { stdio: ["ignore", "pipe", "inherit"] });
    const { exitCode, output } = await ended(running, "bash");
    if (stopped) return 130;
    if (exitCode !== 0) throw new CliError(NO_PYTHON);

    running = spawn(join(output.trim(), "bin/python"), ["-m", "atelier_trainer", command, ...args], {
      cwd,
      env: { ...process.env, PYTHONPATH: join(root, "services/trainer"), PYTHONUNBUFFERED: "1" },
      stdio: "inherit",
    });
    const tool = await ended(running, "the Python of the trainer");
    return stopped ? 130 : tool.exitCode;
  } finally {
    silence();
  }
}

const NO_PYTHON = `the Python tools could not be set up (the reason stands above). They need, the first time only:
  Python 3.11 or newer with venv    PYTHON=/path/to/python3 names one
  10 GB of disk                     ATELIER_CACHE=/folder puts them elsewhere than ~/.cache/atelier
  a package index that pip reaches  PIP_INDEX_URL names a mirror
无法准备 Python 环境：需要 Python 3.11 以上（含 venv）、10 GB 磁盘空间和 pip 可访问的软件源。`;

async function ended(child: ChildProcess, name: string): Promise<{ exitCode: number; output: string }> {
  let output = "";
  child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
    output += chunk;
  });
  return new Promise((resolve, reject) => {
    child.once("error", (error) =>
      reject(new CliError(`${name} cannot be started: ${error.message}`, { cause: error })),
    );
    // As a shell counts: an end by a signal is 128 and its number.
    child.once("close", (code, signal) =>
      resolve({ exitCode: code ?? 128 + (signal === null ? 0 : constants.signals[signal]), output }),
    );
  });
}
