import { Deadline, systemClock } from "@atelier/core";
import type { DeviceSpec, NetworkFiles } from "../device/device.ts";
import { openPromptReader } from "../prompt-reader.ts";
import { type TextEncoded, type TextEncodeLimits, TextEncodeStage } from "../stages/text-encode.ts";
import { openNetworks, releaseAll } from "./open-networks.ts";
import { type HostedStage, hostStage, type Reply } from "./stage-host.ts";

export interface TextEncodeData {
  readonly device: DeviceSpec;
  readonly models: readonly (NetworkFiles & { readonly tokenizerDir: string; readonly digest: string })[];
  readonly limits: TextEncodeLimits;
}

export interface TextEncodeWork {
  readonly model: string;
  readonly prompt: string;
  readonly negativePrompt: string | undefined;
  readonly deadlineAtMs: number;
}

export interface TextEncodeResult extends TextEncoded {
  /** When the stage took it up, by the system clock. */
  readonly startedAtMs: number;
}

await hostStage(openTextEncode);

async function openTextEncode(
  { device, models, limits }: TextEncodeData,
  reply: Reply<TextEncodeResult, never>,
): Promise<HostedStage<TextEncodeWork, never>> {
  const opened = await openNetworks(device, models, async (opener, { tokenizerDir, digest, ...files }) => {
    const reader = await openPromptReader(tokenizerDir);
    const encoder = await opener.openTextEncoder(files);
    return {
      reader,
      encoder,
      digest,
      get weightsBytes() {
        return encoder.weightsBytes;
      },
      release: () => encoder.release(),
    };
  });
  const stage = new TextEncodeStage(opened, limits);

  return {
    enqueue: (id, { deadlineAtMs, ...work }) =>
      stage.enqueue({ ...work, id, deadline: new Deadline(systemClock, deadlineAtMs) }),
    cancel: (id) => stage.cancel(id),
    command: () => {},
    get busy() {
      return stage.busy;
    },
    async step() {
      const startedAtMs = systemClock.nowMs();
      for (const outcome of await stage.step()) {
        if (outcome.error !== undefined) reply.failed(outcome.job.id, outcome.error);
        else reply.done(outcome.job.id, { ...outcome.encoded, startedAtMs });
      }
    },
    release: () => releaseAll(opened),
  };
}
