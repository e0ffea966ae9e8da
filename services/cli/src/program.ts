import { join, resolve } from "node:path";
import { Command, Option } from "commander";
import { decimal, natsUrl, size, wholeNumber } from "./argument-values.ts";
import { CliError } from "./cli-error.ts";
import { formatOf, readInitImage } from "./client/image-files.ts";
import { generate } from "./commands/generate.ts";
import { listModels } from "./commands/list-models.ts";
import { type TrainerToolOptions, trainerTool } from "./commands/trainer-tool.ts";
import { up } from "./commands/up.ts";
import { examples } from "./examples.ts";
import { addCache } from "./program-cache.ts";
import { addJobs } from "./program-jobs.ts";
import { addTenancy, keyOption, urlOption } from "./program-tenants.ts";
import { usualDataFolder } from "./system/data-folder.ts";
import type { ServiceEntries } from "./system/local-system.ts";

export interface ProgramOptions {
  readonly version: string;
  /** The repository: models are found under it. */
  readonly root: string;
  readonly entries: ServiceEntries;
  /** Where `up` opens unless told otherwise, and where the other commands look. */
  readonly defaultUrl: string;
  readonly env: Readonly<Record<string, string | undefined>>;
}

const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"];
const FORMATS = ["png", "jpeg", "webp"];

/**
 * Reads the command line and runs what it names. Resolves to the exit code: 0, 1 when the command failed (its message
 * is on standard error), 2 when it was not understood.
 */
export async function run(argv: readonly string[], options: ProgramOptions): Promise<number> {
  let exitCode = 0;
  const program = createProgram(options, (code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync(argv, { from: "user" });
    return exitCode;
  } catch (error) {
    if (isCommanderError(error)) return error.exitCode === 0 ? 0 : 2; // it has printed its message
    if (!(error instanceof CliError)) throw error;
    console.error(`error: ${error.message}`);
    return error.exitCode;
  }
}

function createProgram(options: ProgramOptions, finish: (exitCode: number) => void): Command {
  const program = new Command("atelier")
    .description("Makes pictures from prompts, and runs the system that does · 由文字生成图片")
    .version(options.version, "-V, --version", "print the version")
    .helpOption("-h, --help", "print this")
    .helpCommand("help [command]", "print what a command takes")
    .showHelpAfterError("(--help says what there is)")
    .exitOverride();
  addUp(program, options, finish);
  addGenerate(program, options, finish);
  addModels(program, options, finish);
  addJobs(program, options, finish);
  addTenancy(program, options);
  addCache(program, options);
  return program;
}

function addUp(
  program: Command,
  { root, entries, defaultUrl, env }: ProgramOptions,
  finish: (exitCode: number) => void,
): void {
  // npm runs scripts in the root and says where the user was.
  const base = env["INIT_CWD"] ?? ".";
  program
    .command("up")
    .description("run the whole system on this machine until Ctrl-C · 启动整个系统")
    .option(
      "-p, --port <n>",
      "port of the HTTP API; 0 takes a free one",
      wholeNumber({ min: 0, max: 65_535 }),
      Number(new URL(defaultUrl).port),
    )
    .option(
      "--host <address>",
      "address to listen on; 0.0.0.0 opens it to the network, which asks for API keys",
      "127.0.0.1",
    )
    .option("-w, --workers <n>", "worker processes (default: 1, in a cluster 2)", wholeNumber({ min: 1, max: 64 }))
    .option(
      "--redis <url>",
      "a Redis that runs, for what gateways share: redis://host:6379, redis-cluster://..., redis-sentinel://.../name, " +
        "rediss for TLS; ATELIER_REDIS says the same without showing a password to others on this machine",
    )
    .option(
      "--cluster",
      "2 gateways, on the port and the next, 2 workers, a Redis and a NATS, as on several machines",
      false,
    )
    .addOption(
      new Option(
        "--data <folder>",
        "where bulk jobs and their pictures are kept from one start to the next, and what a gateway without Redis keeps " +
          "(default for jobs: ~/.local/share/atelier)",
      ).env("ATELIER_DATA_DIR"),
    )
    .addOption(
      new Option(
        "--nats <url>",
        "a NATS with JetStream that runs, for bulk jobs in the place of a file: nats://host:4222, tls://..., several with " +
          "commas; ATELIER_QUEUE says the same without showing a password to others on this machine",
      ).argParser(natsUrl),
    )
    .addOption(
      new Option("--objects <address>", "where pictures of bulk jobs go: file:/folder or s3://bucket/prefix").env(
        "ATELIER_OBJECTS",
      ),
    )
    .option("--no-jobs", "no bulk jobs")
    .option("--models <folders>", "model bundles, comma-separated (default: the embedded model)")
    .option("--device <name>", "what the workers run on", "cpu")
    .addOption(logLevelOption())
    .addHelpText(
      "after",
      examples([
        "atelier up --port 9000",
        "npm start -- --port 9000",
        "atelier up --workers 2 --models ./my-model",
        "npm start -- --redis redis://127.0.0.1:6379",
        "npm start -- --cluster",
        "npm start -- --data ./my-jobs",
        "npm start -- --nats nats://127.0.0.1:4222 --objects s3://pictures/atelier",
      ]),
    )
    .action(async (given) => {
      const models = given.models?.split(",").filter(Boolean) as string[] | undefined;
      const exitCode = await up({
        entries,
        host: given.host,
        port: given.port,
        gateways: given.cluster ? 2 : 1,
        workers: given.workers ?? (given.cluster ? 2 : 1),
        redis: given.redis === undefined ? (given.cluster ? "own" : undefined) : { url: given.redis },
        jobs: given.jobs
          ? {
              dataDir: given.data === undefined ? usualDataFolder(env) : resolve(base, given.data),
              dataDirGiven: given.data !== undefined,
              queue: given.nats ?? (env["ATELIER_QUEUE"] || (given.cluster ? "own-nats" : undefined)),
              objects: given.objects,
            }
          : undefined,
        models: models?.map((folder) => resolve(base, folder)) ?? [embeddedModel(root)],
        device: given.device,
        logLevel: given.logLevel,
        command: env["npm_lifecycle_event"] === "start" ? "npm start --" : "atelier up",
        byNpm: env["npm_lifecycle_event"] !== undefined,
      });
      finish(exitCode);
    });
}

function addGenerate(
  program: Command,
  { root, entries, defaultUrl }: ProgramOptions,
  finish: (exitCode: number) => void,
): void {
  program
    .command("generate")
    .description("make a picture and write it to a file · 生成图片")
    .argument("<prompt>", "what to draw, in English or Chinese")
    .option("-o, --output <file>", "file to write (default: atelier-SEED.png)")
    .option("-n, --negative <text>", "what to steer away from")
    .option("-s, --size <WxH>", "pixels, such as 512x512 or 512", size)
    .option("--steps <n>", "denoising steps", wholeNumber({ min: 0, max: Number.MAX_SAFE_INTEGER }))
    .option("--seed <n>", "the same seed gives the same picture", wholeNumber({ min: 0, max: Number.MAX_SAFE_INTEGER }))
    .option("--guidance <x>", "how strongly the prompt steers; 1 is no guidance", decimal)
    .option("--sampler <name>", "dpmpp_2m, dpmpp_2m_sde, euler, euler_a, ddim, unipc or lcm")
    .option("--model <id>", "one of: atelier models ls")
    .addOption(new Option("--format <name>", "default: as the file's name says").choices(FORMATS))
    .option("--init <file>", "a picture to start from: png, jpeg or webp")
    .option("--strength <x>", "with --init, above 0 to 1: how much is drawn anew (default: 0.6)", decimal)
    .option("--quality <n>", "of jpeg and webp, 1 to 100", wholeNumber({ min: 0, max: 1000 }))
    .option("--num-images <n>", "several pictures: FILE-1, FILE-2, ...", wholeNumber({ min: 0, max: 1000 }))
    .addOption(urlOption())
    .addOption(keyOption())
    .option("--json", "print the receipt as JSON", false)
    .option("--verbose", "say how far it is in a pipe too, a line at a time", false)
    .addOption(logLevelOption())
    .addHelpText(
      "after",
      examples([
        'atelier generate "国潮风T恤, 白色背景" -o tee.png',
        'atelier generate "a red mug, watercolour" -s 256 --seed 7 -o mug.webp',
        'atelier generate "a mug in watercolour" --init mug.png --strength 0.5 -o mug-2.png',
      ]).concat(`\n\nWithout --url it uses the system at ${defaultUrl}, or starts one for the call.`),
    )
    .action(async (prompt: string, given) => {
      const format = given.format ?? (given.output === undefined ? undefined : formatOf(given.output));
      const exitCode = await generate({
        body: withoutAbsent({
          prompt,
          negative_prompt: given.negative,
          width: given.size?.width,
          height: given.size?.height,
          steps: given.steps,
          seed: given.seed,
          guidance_scale: given.guidance,
          sampler: given.sampler,
          model: given.model,
          format,
          quality: given.quality,
          num_images: given.numImages,
          init_image: given.init === undefined ? undefined : await readInitImage(given.init),
          strength: given.strength,
        }),
        output: given.output,
        url: given.url,
        defaultUrl,
        key: given.key,
        json: given.json,
        verbose: given.verbose,
        system: {
          entries,
          host: "127.0.0.1",
          port: 0,
          gateways: 1,
          workers: 1,
          redis: undefined,
          jobs: undefined,
          dataDir: undefined,
          models: [embeddedModel(root)],
          device: "cpu",
          logLevel: given.logLevel,
        },
      });
      finish(exitCode);
    });
}

function addModels(
  program: Command,
  { root, defaultUrl, env }: ProgramOptions,
  finish: (exitCode: number) => void,
): void {
  const models = program
    .command("models")
    .description("the models that a running system serves, and new ones from published weights · 模型");
  models
    .command("ls", { isDefault: true })
    .description("list them")
    .addOption(urlOption().default(defaultUrl))
    .addOption(keyOption())
    .option("--json", "print them as JSON", false)
    .addHelpText("after", examples(["atelier models ls", "atelier models ls --json"]))
    .action((given) => listModels({ server: given, json: given.json }));

  const addTool = (command: TrainerToolOptions["command"], usage: string, description: string, help: string) =>
    models
      .command(command)
      .usage(usage)
      .description(description)
      .argument("[arguments...]")
      .allowUnknownOption()
      .addHelpText("after", help)
      .action(async (_given: unknown, _options: unknown, tool: Command) =>
        finish(await trainerTool({ root, command, args: tool.args, cwd: env["INIT_CWD"] ?? "." })),
      );
  addTool(
    "import",
    "<source> --out <folder> [options]",
    "write a bundle from published Stable Diffusion 1.x, 2.x or XL weights · 导入模型",
    IMPORT_HELP + examples(IMPORT_EXAMPLES),
  );
  addTool(
    "quantize",
    "<bundle> --out <folder> [options]",
    "write a bundle with 8-bit weights from another · 量化模型",
    QUANTIZE_HELP + examples(["atelier models quantize ./sd15 --out ./sd15-int8 --mode weight-only"]),
  );
}

const IMPORT_HELP = `
Source · 来源:
  a diffusers folder, or a single .safetensors checkpoint; pickles (.bin, .ckpt, .pt) are refused · 不读取 pickle 文件

Options of the import · 导入选项:
  --out <folder>              bundle folder to write; nothing is left there when the import fails
  --force                     replace the bundle that is there
  --id <id>, --name <text>    what requests and people call it (default: from the source's name)
  --license <name>            for the manifest (default: what the model card says)
  --fp16                      float16 weights and arithmetic, for GPUs
  --external-data             weights beside each graph, as is always done over 1 GiB
  --text-encoder-from <bundle>, --vae-from <bundle>
                              borrow a part from a bundle that has the same
  --tokenizer <path>          of a single file: CLIP's vocabulary, a tokenizer folder or bpe_simple_vocab_16e6.txt.gz
  --prediction <kind>         of a single file: epsilon or v_prediction
  --configs <folder>          of a single file: config.json files in the place of the published figures

It works offline, in Python, whose environment is built at the first call (6.5 GB).`;

const IMPORT_EXAMPLES = [
  "atelier models import ./stable-diffusion-v1-5 --out ./models/sd15 --fp16",
  "atelier models import dreamy.safetensors --out ./models/dreamy --tokenizer ./stable-diffusion-v1-5/tokenizer",
  "atelier up --models ./models/sd15",
];

const QUANTIZE_HELP = `
Every option is passed on to \`python -m atelier_trainer quantize\`, which says what it takes:
  --out <folder>              bundle folder to write
  --mode <name>               weight-only (default) or dynamic
  --quality-min <dB>          PSNR to reach by keeping layers in float, while the size holds (50)
  --size-max, --half-size-max <share>
                              of the float32 bytes (0.30), of the float16 bytes (0.55)
  --keep-max <count>          most layers kept in float
  --report                    compare pictures and speed with the original's
  --json                      one line of JSON and nothing else`;

function embeddedModel(root: string): string {
  return join(root, "deploy/models/atelier-tiny");
}

function logLevelOption(): Option {
  return new Option("--log-level <level>", "what the services write to standard error")
    .env("ATELIER_LOG_LEVEL")
    .choices(LOG_LEVELS)
    .default("warn");
}

type Present<T> = { [K in keyof T]?: Exclude<T[K], undefined> };

/** Leaves out what was not given: the server refuses null, and fills in its defaults for what is absent. */
function withoutAbsent<T extends { prompt: string }>(fields: T): Present<T> & { prompt: string } {
  const present = Object.entries(fields).filter(([, value]) => value !== undefined);
  return Object.fromEntries(present) as Present<T> & { prompt: string };
}

function isCommanderError(error: unknown): error is Error & { exitCode: number } {
  return error instanceof Error && "code" in error && String(error.code).startsWith("commander.");
}
