/**
 * The plain alternative to the worker, as a child process: one onnxruntime session for each network with every thread
 * it may have, one picture at a time from prompt to PNG. Same graphs, samplers and image codec as the worker's; nothing
 * of its stages, batching or threads.
 *
 * Arguments: bundle folder, threads. Says "ready"; answers each request of the parent with its file, in order.
 */
import { createPlan, guide, latentSize, TorchGenerator } from "@atelier/diffusion";
import { type Bundle, PromptTokenizer, parsePrompt, readBundle } from "@atelier/worker";
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";
import type { PictureRequest } from "./picture-request.ts";

class LoopEngine {
  readonly #bundle: Bundle;
  readonly #tokenizer: PromptTokenizer;
  readonly #text: InferenceSession;
  readonly #unet: InferenceSession;
  readonly #vae: InferenceSession;

  private constructor(bundle: Bundle, tokenizer: PromptTokenizer, sessions: readonly InferenceSession[]) {
    this.#bundle = bundle;
    this.#tokenizer = tokenizer;
    [this.#text, this.#unet, this.#vae] = sessions as [InferenceSession, InferenceSession, InferenceSession];
  }

  static async open(bundle: Bundle, intraOpNumThreads: number): Promise<LoopEngine> {
    const [textEncoder] = bundle.textEncoders as [Bundle["textEncoders"][number]];
    const paths = [textEncoder.path, bundle.unetPath, bundle.vaeDecoderPath];
    const sessions = await Promise.all(paths.map((path) => InferenceSession.create(path, { intraOpNumThreads })));
    return new LoopEngine(bundle, await PromptTokenizer.load(textEncoder.tokenizerDir), sessions);
  }

  async draw(request: PictureRequest): Promise<Uint8Array> {
    const { width, height, steps, guidanceScale, sampler, seed } = request;
    const channels = this.#bundle.latentChannels;
    const shape = { channels, height: height / 8, width: width / 8 };
    const size = latentSize(shape);
    const guided = guidanceScale > 1;
    const embedding = await this.#embed(guided ? [request.negativePrompt, request.prompt] : [request.prompt]);
    const rows = guided ? 2 : 1;
    const plan = createPlan({ sampler, steps, schedule: this.#bundle.scheduler });
    const generator = new TorchGenerator(seed);
    const sample = new Float32Array(rows * size);
    const timestep = new Float32Array(rows);
    const feeds = {
      sample: new Tensor("float32", sample, [rows, channels, shape.height, shape.width]),
      timestep: new Tensor("float32", timestep, [rows]),
      encoder_hidden_states: embedding,
    };
    let latent: Float32Array = generator.randn(size).map((x) => x * plan.initNoiseSigma);
    let history: Parameters<typeof plan.step>[0]["history"] = { arrays: [] };
    for (let stepIndex = 0; stepIndex < plan.stepCount; stepIndex++) {
      const input = plan.modelInput(latent, stepIndex);
      for (let row = 0; row < rows; row++) sample.set(input, row * size);
      timestep.fill(plan.timesteps[stepIndex]!);
      const results = await this.#unet.run(feeds);
      const output = results[this.#unet.outputNames[0]!]!.data as Float32Array;
      const modelOutput = guided ? guide(output.subarray(0, size), output.subarray(size), guidanceScale) : output;
      ({ latent, history } = plan.step({
        stepIndex,
        latent,
        modelOutput,
        history,
        noise: () => generator.randn(size),
      }));
    }
    return this.#decode(latent, [1, channels, shape.height, shape.width]);
  }

  async #embed(prompts: readonly string[]): Promise<Tensor> {
    const chunks = prompts.map(
      (prompt) => this.#tokenizer.tokenize(parsePrompt(prompt, { field: "prompt" }), { field: "prompt" }).chunks[0]!,
    );
    const ids = chunks.flatMap((chunk) => Array.from(chunk.ids, BigInt));
    const dims = [chunks.length, chunks[0]!.ids.length];
    const results = await this.#text.run({ input_ids: new Tensor("int64", BigInt64Array.from(ids), dims) });
    return results["last_hidden_state"] as Tensor;
  }

  async #decode(latent: Float32Array, dims: readonly number[]): Promise<Uint8Array> {
    const { scalingFactor, shiftFactor = 0 } = this.#bundle;
    const scaled = latent.map((x) => x / scalingFactor + shiftFactor);
    const results = await this.#vae.run({ latent_sample: new Tensor("float32", scaled, dims) });
    const image = results[this.#vae.outputNames[0]!] as Tensor;
    const [, , height, width] = image.dims as [number, number, number, number];
    const planes = image.data as Float32Array;
    const data = new Uint8ClampedArray(planes.length);
    const plane = width * height;
    for (let channel = 0; channel < 3; channel++) {
      for (let i = 0; i < plane; i++) data[i * 3 + channel] = (planes[channel * plane + i]! / 2 + 0.5) * 255;
    }
    return sharp(data, { raw: { width, height, channels: 3 } })
      .png({ compressionLevel: 1 })
      .toBuffer();
  }
}

const [folder, threads] = process.argv.slice(2);
const bundle = await readBundle(folder!);
const engine = await LoopEngine.open(bundle, Number(threads));
let last: Promise<void> = Promise.resolve();
process.on("message", ({ id, request }: { id: number; request: PictureRequest }) => {
  last = last.then(async () => {
    process.send!({ id, file: await engine.draw(request) });
  });
});
process.on("disconnect", () => process.exit(0));
process.send!("ready");
