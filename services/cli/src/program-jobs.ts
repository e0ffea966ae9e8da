import { type Command, InvalidArgumentError, Option } from "commander";
import { decimal, httpUrl, size, wholeNumber } from "./argument-values.ts";
import { CliError } from "./cli-error.ts";
import { downloadJob } from "./commands/jobs/download.ts";
import { changeJob, listJobs, removeJob, retryJob, showJob } from "./commands/jobs/manage.ts";
import { type JobOptions, submitJob } from "./commands/jobs/submit.ts";
import { watch } from "./commands/jobs/watch.ts";
import { examples } from "./examples.ts";
import { keyOption, urlOption } from "./program-tenants.ts";

const STATUSES = ["queued", "running", "paused", "done", "cancelled"];
const EVENTS = "job.started, job.progress, job.paused, job.resumed, job.done, job.cancelled, job.item.failed";

/** `atelier jobs`. */
export function addJobs(
  program: Command,
  { defaultUrl }: { readonly defaultUrl: string },
  finish: (exitCode: number) => void,
): void {
  const jobs = program.command("jobs").description("thousands of pictures from a sheet · 批量任务");
  const command = (usage: string, description: string) =>
    jobs
      .command(usage)
      .description(description)
      .addOption(urlOption().default(defaultUrl))
      .addOption(keyOption())
      .option("--json", "print it as JSON", false);

  addSubmit(command("submit", "make a job of a sheet: a picture for each row, preset and variant"), finish);
  command("ls", "list them, newest first")
    .addOption(new Option("--status <name>", "those that are so").choices(STATUSES))
    .option("--name <text>", "those whose name has this in it")
    .option("--limit <n>", "how many", wholeNumber({ min: 1, max: 200 }), 50)
    .action(({ status, name, limit, json, ...server }) => listJobs({ server, status, name, limit, json }));
  command("show", "how one stands, and why items of it failed")
    .argument("<id>")
    .action((id: string, { json, ...server }) => showJob({ server, id, json }));
  command("watch", "follow one until it has ended; Ctrl-C ends the watching, not the job")
    .argument("<id>")
    .addHelpText("after", "\nExit code: 0 when every picture is there, 1 when some are not, 130 after Ctrl-C.")
    .action(async (id: string, { json, ...server }) => finish(await watch({ server, id, json })));
  for (const [verb, description] of [
    ["pause", "hand out nothing more of one; what a worker is at is finished"],
    ["resume", "go on with one that is paused"],
    ["cancel", "end one; what it has made stays"],
  ] as const) {
    command(verb, description)
      .argument("<id>")
      .action((id: string, { json, ...server }) => changeJob({ server, id, verb, json }));
  }
  command("retry", "make the failed items of one again")
    .argument("<id>")
    .option("--items <numbers>", "only these, such as 3,17", indexes)
    .action((id: string, { items, json, ...server }) => retryJob({ server, id, items, json }));
  command("download", "fetch what one has made so far; run again, it goes on where it ended")
    .argument("<id>")
    .option("-o, --output <place>", "a folder, or a file that ends in .zip (default: a folder named after the job)")
    .addHelpText(
      "after",
      examples(["atelier jobs download job_abc -o pictures", "atelier jobs download job_abc -o pictures.zip"]),
    )
    .action(async (id: string, { output, json, ...server }) =>
      finish(await downloadJob({ server, id, output: output ?? id, json })),
    );
  command("rm", "delete one with every picture that it made")
    .argument("<id>")
    .action((id: string, server) => removeJob({ server, id }));
}

function addSubmit(submit: Command, finish: (exitCode: number) => void): void {
  submit
    .argument(
      "[sheet]",
      "a file of rows: .csv or .tsv (with a header), .jsonl or .json; it is read as it is sent, whatever its size",
    )
    .option("-t, --template <text>", 'the prompt, with columns in braces: "{product}, {colour}, 白色背景"')
    .option("-n, --negative <text>", "what to steer away from; may have columns in braces as well")
    .option("--template-file <file>", "JSON of a job's options; what is given here as well lies over it")
    .option("--preset <name>", "a preset that the service knows; several times for several pictures a row", collected)
    .option("--variants <n>", "pictures of each row and preset", wholeNumber({ min: 1, max: 1_000 }))
    .option("--seed <n>", "what the items' seeds are drawn from", wholeNumber({ min: 0, max: Number.MAX_SAFE_INTEGER }))
    .option("--model <id>", "one of: atelier models ls")
    .option("-s, --size <WxH>", "pixels, such as 512x512 or 512", size)
    .option("--steps <n>", "denoising steps", wholeNumber({ min: 0, max: Number.MAX_SAFE_INTEGER }))
    .option("--guidance <x>", "how strongly the prompt steers; 1 is no guidance", decimal)
    .option("--sampler <name>", "dpmpp_2m, dpmpp_2m_sde, euler, euler_a, ddim, unipc or lcm")
    .addOption(new Option("--format <name>", "of the pictures").choices(["png", "jpeg", "webp"]))
    .option("--quality <n>", "of jpeg and webp, 1 to 100", wholeNumber({ min: 1, max: 100 }))
    .option("--name <text>", "what people call the job (default: the sheet's name)")
    .addOption(new Option("--priority <class>", "standard goes before bulk").choices(["standard", "bulk"]))
    .addOption(
      new Option("--on-error <what>", "a row that cannot be made: reject the sheet, or skip the row").choices([
        "reject",
        "skip",
      ]),
    )
    .option("--charset <name>", "of the sheet, such as gbk (default: found out)")
    .option("--webhook <url>", "told of the job as it goes, signed", httpUrl)
    .option("--webhook-events <names>", `only some of ${EVENTS}`, names)
    .option("--delete-after <days>", "deletes the job and its pictures so long after its end", decimal)
    .option("--idempotency-key <text>", "sent again with the same key, it is the same job")
    .option("--dry-run", "say what it would come to and show the first prompts; nothing is kept", false)
    .option("--watch", "follow it until it has ended", false)
    .addHelpText(
      "after",
      examples([
        'atelier jobs submit products.csv --template "{product}, {colour}, 白色背景" --dry-run',
        'atelier jobs submit products.csv --template "{product}, {colour}" --preset studio --variants 4 --watch',
        "atelier jobs submit products.jsonl --template-file job.json --on-error skip",
      ]),
    )
    .action(async (sheet: string | undefined, given) => {
      if (sheet === undefined && given.templateFile === undefined) {
        throw new CliError("give a sheet, or --template-file with rows in it", { exitCode: 2 });
      }
      const exitCode = await submitJob({
        server: given,
        sheet,
        templateFile: given.templateFile,
        given: optionsOf(given),
        idempotencyKey: given.idempotencyKey,
        dryRun: given.dryRun,
        watch: given.watch,
        json: given.json,
      });
      finish(exitCode);
    });
}

// biome-ignore lint/suspicious/noExplicitAny: commander does not know the types of options
function optionsOf(given: any): JobOptions {
  const defaults = present({
    model: given.model,
    width: given.size?.width,
    height: given.size?.height,
    steps: given.steps,
    guidance_scale: given.guidance,
    sampler: given.sampler,
    format: given.format,
    quality: given.quality,
  });
  const template = present({
    prompt: given.template,
    negative_prompt: given.negative,
    presets: given.preset,
    variants: given.variants,
    seed: given.seed,
    defaults: Object.keys(defaults).length === 0 ? undefined : defaults,
  });
  return present({
    name: given.name,
    template: Object.keys(template).length === 0 ? undefined : template,
    priority: given.priority,
    on_error: given.onError,
    charset: given.charset,
    webhook:
      given.webhook === undefined ? undefined : present({ url: given.webhook, events: given.webhookEvents as unknown }),
    delete_after_days: given.deleteAfter,
  });
}

function collected(text: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), text];
}

function names(text: string): readonly string[] {
  return text
    .split(",")
    .map((name) => name.trim())
    .filter((name) => name !== "");
}

function indexes(text: string): readonly number[] {
  const numbers = names(text).map(Number);
  if (numbers.length > 0 && numbers.every((number) => Number.isSafeInteger(number) && number >= 0)) return numbers;
  throw new InvalidArgumentError("It must be numbers of items, such as 3,17.");
}

/** Leaves out what was not given: the server refuses null, and fills in its defaults for what is absent. */
function present<T extends object>(fields: T): T {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;
}
