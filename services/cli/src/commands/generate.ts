import { CliError } from "../cli-error.ts";
import { answersAsAtelier, GatewayClient, type GenerateBody, type GenerateReply } from "../client/gateway-client.ts";
import { checkWritable, fileNames, writeWhole } from "../client/image-files.ts";
import { LocalSystem, type LocalSystemOptions } from "../system/local-system.ts";
import { Progress } from "../terminal/progress.ts";
import { onStopSignals } from "../terminal/signals.ts";

export interface GenerateOptions {
  readonly body: GenerateBody;
  /** Absent: named after the seed. */
  readonly output: string | undefined;
  /** Absent: the system at `defaultUrl` if one runs there, otherwise one of our own for this call. */
  readonly url: string | undefined;
  readonly defaultUrl: string;
  /** An API key, where the system asks for one. */
  readonly key: string | undefined;
  /** Print the receipt instead of words. */
  readonly json: boolean;
  /** Say where no terminal shows it how far the picture is, a line at a time. */
  readonly verbose: boolean;
  readonly system: Omit<LocalSystemOptions, "report">;
}

/**
 * Makes pictures and writes them to files. Resolves to the exit code.
 * @throws CliError with the server's words when it refuses or fails.
 */
export async function generate(options: GenerateOptions): Promise<number> {
  await checkWritable(options.output ?? ".");
  const stop = new AbortController();
  const progress = new Progress(process.stderr, { verbose: options.verbose });
  const silence = onStopSignals({ first: () => stop.abort(), again: () => process.exit(130) });
  let system: LocalSystem | undefined;
  try {
    let { url } = options;
    if (url === undefined && (await answersAsAtelier(options.defaultUrl))) url = options.defaultUrl;
    if (url === undefined) {
      progress.line(
        `No system runs at ${options.defaultUrl}; starting one for this call (npm start keeps one running).`,
      );
      system = new LocalSystem({ ...options.system, report: () => {} });
      progress.begin("starting the system");
      [url] = await endsWith(stop.signal, system.start());
    }
    await makePictures(options, new GatewayClient({ url, key: options.key }, stop.signal), progress);
    return 0;
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    progress.end();
    progress.line("cancelled");
    return 130;
  } finally {
    progress.end();
    await system?.stop();
    silence();
  }
}

async function makePictures(options: GenerateOptions, client: GatewayClient, progress: Progress): Promise<void> {
  progress.begin("waiting for a worker");
  await client.waitUntilReady();
  progress.begin("drawing");
  const startedMs = Date.now();
  const reply = await client.generate(options.body, ({ stage, steps_done, steps_total }) =>
    progress.steps({ label: STAGE_LABELS[stage] ?? stage, done: steps_done, total: steps_total }),
  );
  const seconds = (Date.now() - startedMs) / 1000;
  progress.end();

  const files = await writePictures(reply, options.output ?? `atelier-${reply.seed}.${extensionOf(reply.format)}`);
  console.log(options.json ? asJson(reply, files) : inWords(reply, files, seconds));
}

const STAGE_LABELS: Record<string, string> = {
  text_encode: "encoding the text",
  denoise: "denoising",
  image_decode: "decoding the image",
};

async function writePictures(reply: GenerateReply, output: string): Promise<readonly string[]> {
  const pictures = reply.images ?? [reply.image];
  const files = fileNames(output, pictures.length);
  for (const [i, picture] of pictures.entries()) await writeWhole(files[i]!, Buffer.from(picture, "base64"));
  return files;
}

function inWords(reply: GenerateReply, files: readonly string[], seconds: number): string {
  const size = `${reply.width}x${reply.height}`;
  const simulated = reply.receipt.simulated === true ? "  simulated: no model ran" : "";
  // Image i of a request uses seed + i.
  return files
    .map((file, i) => `${file}  ${size}  seed ${reply.seed + i}  ${seconds.toFixed(1)} s${simulated}`)
    .join("\n");
}

function asJson({ image: _image, images: _images, ...rest }: GenerateReply, files: readonly string[]): string {
  return JSON.stringify({ files, ...rest }, undefined, 2);
}

function extensionOf(format: string): string {
  return format === "jpeg" ? "jpg" : format;
}

/** `work`, given up (not ended) when `signal` aborts. */
function endsWith<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  work.catch(() => {}); // given up, its failure is nobody's
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(new CliError("cancelled")), { once: true });
    work.then(resolve, reject);
  });
}
