import { SAMPLERS, type SamplerName } from "@atelier/diffusion";
import { z } from "zod";
import { FAMILY_NAMES } from "./families.ts";
import { type BundleProblems, show } from "./problems.ts";

export const MANIFEST_FILE = "atelier.json";

const SCHEMA_VERSION = 1;

/** What a bundle may take from another, and the folders that go with it. The U-Net is what makes it a model of its own. */
export const BORROWABLE = {
  text_encoder: ["text_encoder", "tokenizer"],
  text_encoder_2: ["text_encoder_2", "tokenizer_2"],
  vae_decoder: ["vae_decoder"],
  vae_encoder: ["vae_encoder"],
} as const;
export type BorrowablePart = keyof typeof BORROWABLE;

const bundleId = z.string().regex(/^[a-z0-9][a-z0-9._-]{0,63}$/, "must be 1 to 64 of a-z, 0-9, '.', '_', '-'");
/** A part of the bundle of this id, whose files have this digest together: the digest of a bundle of them alone. */
const borrowed = z
  .strictObject({
    bundle: bundleId,
    digest: z.string().regex(/^sha256:[0-9a-f]{64}$/, 'must be "sha256:" and 64 lower-case hex digits'),
  })
  .optional();

const pixels = z.int().min(8).max(16_384);
const size = z.strictObject({ width: pixels, height: pixels });
const rgb = z.tuple([z.number(), z.number(), z.number()]);

const schema = z
  .strictObject({
    schemaVersion: z.literal(SCHEMA_VERSION),
    id: bundleId,
    name: z.string().min(1).max(200),
    family: z.enum(FAMILY_NAMES),
    license: z.string().min(1).max(200).optional(),
    nativeSize: size,
    defaultSize: size,
    sizeMultiple: z.int().min(8).max(512).multipleOf(8),
    sizeMin: pixels,
    sizeMax: pixels,
    defaultSteps: z.int().min(1).max(150),
    defaultGuidanceScale: z.number().min(0).max(100),
    defaultSampler: z.enum(SAMPLERS as readonly [SamplerName, ...SamplerName[]]),
    hiresFix: z
      .strictObject({
        // A request for more pixels than this is made in two phases.
        abovePixels: z.int().min(1),
        // How much of the schedule the second phase runs, as in img2img: 1 is all of it.
        strength: z.number().gt(0).lte(1),
        upscale: z.enum(["nearest", "bilinear", "bicubic"]),
        // The second phase's size over the first's, per side, at most.
        latentScaleMax: z.number().gt(1).optional(),
      })
      .optional(),
    // Pixel = previewBias + latent * previewMatrix, one row per latent channel, colours from 0 to 1: a cheap preview.
    previewMatrix: z.array(rgb).min(1).optional(),
    previewBias: rgb.optional(),
    parts: z.record(
      z.string(),
      z.strictObject({
        sha256: z.string().regex(/^[0-9a-f]{64}$/, "must be 64 lower-case hex digits"),
        bytes: z.int().min(0),
      }),
    ),
    uses: z
      .strictObject({
        text_encoder: borrowed,
        text_encoder_2: borrowed,
        vae_decoder: borrowed,
        vae_encoder: borrowed,
      } satisfies Record<BorrowablePart, typeof borrowed>)
      .optional(),
    // How the weights came about: for people, not for us.
    trained: z.record(z.string(), z.unknown()).optional(),
  })
  .superRefine((manifest, context) => {
    const complain = (path: string[], message: string) => context.addIssue({ code: "custom", path, message });
    const { sizeMin, sizeMax, sizeMultiple } = manifest;
    if (sizeMin > sizeMax) complain(["sizeMin"], `is above sizeMax, ${sizeMax}`);
    for (const key of ["nativeSize", "defaultSize"] as const) {
      for (const side of ["width", "height"] as const) {
        const value = manifest[key][side];
        if (value % sizeMultiple !== 0) complain([key, side], `is not a multiple of sizeMultiple, ${sizeMultiple}`);
        if (value < sizeMin || value > sizeMax) complain([key, side], `is not within ${sizeMin} and ${sizeMax}`);
      }
    }
    if ((manifest.previewMatrix === undefined) !== (manifest.previewBias === undefined)) {
      complain(["previewMatrix"], "and previewBias come together or not at all");
    }
  });

/** Our own file in a bundle: what the model is called, what sizes it takes, what it does best, and which files it is. */
export type BundleManifest = Readonly<z.output<typeof schema>>;

/** Checks the parsed contents of an `atelier.json`. It is our own file, so an unknown key is a mistake, not a novelty. */
export function checkManifest(json: unknown, problems: BundleProblems): BundleManifest | undefined {
  const version = (json as { schemaVersion?: unknown } | null)?.schemaVersion;
  if (version !== SCHEMA_VERSION) {
    problems.add(MANIFEST_FILE, `schemaVersion is ${show(version)}; this version of Atelier reads ${SCHEMA_VERSION}`);
    return undefined;
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  for (const { path, message } of parsed.error.issues) {
    const value = path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], json);
    problems.add(MANIFEST_FILE, path.length === 0 ? message : `${path.join(".")} is ${show(value)}: ${message}`);
  }
  return undefined;
}
