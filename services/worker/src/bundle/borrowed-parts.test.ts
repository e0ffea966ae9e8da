import { mkdtemp, realpath, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ServingError } from "@atelier/core";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { partsOfFolders } from "./borrowed-parts.ts";
import { readBundle } from "./index.ts";
import { bundleDigest, type PartList } from "./parts.ts";
import { json, network, type ToyFiles, text, toyFiles, toyManifest, writeBundle } from "./testing/toy-bundle.ts";

/** Holds the bundles "lender" and "borrower", side by side. */
let dir: string;
beforeEach(async () => {
  dir = await realpath(await mkdtemp(join(tmpdir(), "bundles-")));
});
afterEach(() => rm(dir, { recursive: true }));

describe("a bundle that borrows a part", () => {
  it("takes a text encoder with its tokenizer, or a VAE, from the bundle beside it", async () => {
    await writeLender();
    await writeBorrower(["text_encoder", "vae_decoder"]);
    expect(await read()).toMatchObject({
      id: "borrower",
      dir: join(dir, "borrower"),
      textEncoders: [
        { path: join(dir, "lender/text_encoder/model.onnx"), tokenizerDir: join(dir, "lender/tokenizer") },
      ],
      vaeDecoderPath: join(dir, "lender/vae_decoder/model.onnx"),
      unetPath: join(dir, "borrower/unet/model.onnx"),
      scalingFactor: 0.5,
    });
  });

  it("has the digest of a bundle that has the same files itself", async () => {
    await writeLender();
    await writeBorrower(["text_encoder", "vae_decoder"]);
    const { digest, textDigest } = await read();
    await writeBundle(join(dir, "whole"), toyFiles());
    expect(await readBundle(join(dir, "whole"))).toMatchObject({ digest, textDigest });
  });

  it("finds the lender among the folders that were given, by its id and not by its folder's name", async () => {
    await writeLender({ folder: "elsewhere/models/v7" });
    await writeBorrower(["vae_decoder"]);
    expect(await complaint()).toContain(
      'uses.vae_decoder: bundle "lender" is neither among those that were given nor in a folder beside this one',
    );
    const lenderDirs = [join(dir, "nothing"), join(dir, "borrower"), join(dir, "elsewhere/models/v7")];
    const { vaeDecoderPath } = await readBundle(join(dir, "borrower"), { lenderDirs });
    expect(vaeDecoderPath).toBe(join(dir, "elsewhere/models/v7/vae_decoder/model.onnx"));
  });

  it("takes, of several copies of the lender, the one whose part is the one that is wanted", async () => {
    await writeLender({ folder: "a-newer", change: { "vae_decoder/config.json": json({ scaling_factor: 0.7 }) } });
    await writeLender({ folder: "b-wanted" });
    await writeBorrower(["vae_decoder"]);
    expect((await read()).vaeDecoderPath).toBe(join(dir, "b-wanted/vae_decoder/model.onnx"));
  });

  it("asks nothing of the lender but the part: its other networks may be broken or gone", async () => {
    await writeLender();
    await writeBorrower(["vae_decoder"]);
    await rm(join(dir, "lender/unet"), { recursive: true });
    await writeFile(join(dir, "lender/text_encoder/model.onnx"), "damaged");
    await expect(read()).resolves.toMatchObject({ id: "borrower" });
  });

  it("reads the weights that a lent graph keeps beside itself, and in no other place", async () => {
    const graph = (location: string) =>
      network({
        inputs: { latent_sample: [1, "b", 4, "h", "w"] },
        outputs: { sample: [1, "b", 3, "h", "w"] },
        externalData: [location],
      });
    const weights = { "vae_decoder/model.onnx_data": new Uint8Array(16) };
    const beside = { ...weights, "vae_decoder/model.onnx": graph("model.onnx_data") };
    await writeLender({ change: beside });
    await writeBorrower(["vae_decoder"], "lender", { ...toyFiles(), ...beside });
    await expect(read()).resolves.toMatchObject({ id: "borrower" });

    const elsewhere = { ...weights, "vae_decoder/model.onnx": graph("../unet/model.onnx") };
    await writeLender({ change: elsewhere });
    await writeBorrower(["vae_decoder"], "lender", { ...toyFiles(), ...elsewhere });
    expect(await complaint()).toContain(
      'vae_decoder/model.onnx: keeps weights in "../unet/model.onnx", which has ".."',
    );
  });

  it("may lend the lender another part", async () => {
    await writeLender();
    await writeBorrower(["vae_decoder"]);
    await rm(join(dir, "lender/text_encoder"), { recursive: true });
    await rm(join(dir, "lender/tokenizer"), { recursive: true });
    const files = without(toyFiles(), ["text_encoder", "tokenizer"]);
    const uses = { text_encoder: { bundle: "borrower", digest: partDigest(["text_encoder", "tokenizer"]) } };
    await writeBundle(join(dir, "lender"), files, { ...toyManifest(files), id: "lender", uses });
    await expect(readBundle(join(dir, "lender"))).resolves.toMatchObject({ id: "lender" });
    await expect(read()).resolves.toMatchObject({ id: "borrower" });
  });

  it("is not put off by what else lies beside it", async () => {
    await writeLender();
    await writeBorrower(["vae_decoder"]);
    await writeBundle(join(dir, "a-broken-one"), {}, { id: "lender-2", schemaVersion: 9 });
    await writeBundle(join(dir, "b-not-json"), {});
    await writeFile(join(dir, "b-not-json/atelier.json"), "{");
    await symlink(join(dir, "nowhere"), join(dir, "c-dangling"));
    await writeFile(join(dir, "d-file"), "");
    await expect(read()).resolves.toMatchObject({ id: "borrower" });
  });
});

describe("a bundle that borrows is refused", () => {
  it("where the part is not the one that its digest names, both digests given", async () => {
    await writeLender({ change: { "vae_decoder/config.json": json({ scaling_factor: 0.7 }) } });
    await writeBorrower(["vae_decoder"]);
    const message = await complaint();
    expect(message).toContain(
      `atelier.json: uses.vae_decoder: bundle "lender" (${dir}/lender) has another one: its digest is sha256:`,
    );
    expect(message).toContain(`and ${partDigest(["vae_decoder"])} is wanted`);
  });

  it("where a file of the part is not what the lender's manifest says", async () => {
    await writeLender();
    await writeBorrower(["text_encoder"]);
    await writeFile(join(dir, "lender/text_encoder/model.onnx"), "cut off");
    expect(await complaint()).toContain(
      `uses.text_encoder: "lender" (${dir}/lender): text_encoder/model.onnx: is truncated: it has 7 bytes`,
    );
  });

  it("where there is no such bundle, and says nothing of files that would be missing for it", async () => {
    await writeBorrower(["text_encoder"]);
    const lines = (await complaint()).split("\n");
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain('uses.text_encoder: bundle "lender" is neither among those that were given nor');
  });

  it("where the lender has no such part", async () => {
    await writeLender();
    const files = toyFiles();
    const uses = { vae_encoder: { bundle: "lender", digest: partDigest([]) } };
    await writeBundle(join(dir, "borrower"), files, { ...toyManifest(files), id: "borrower", uses });
    expect(await complaint()).toContain(`uses.vae_encoder: bundle "lender" (${dir}/lender) has no vae_encoder to lend`);
  });

  it("where it would borrow from itself", async () => {
    await writeBorrower(["vae_decoder"], "borrower");
    expect(await complaint()).toContain("uses.vae_decoder: is borrowed from this bundle itself");
  });

  it("where two bundles borrow one part from each other, and where a lender has only borrowed it", async () => {
    await writeBorrower(["vae_decoder"]);
    const files = without(toyFiles(), ["vae_decoder"]);
    const uses = { vae_decoder: { bundle: "borrower", digest: partDigest(["vae_decoder"]) } };
    await writeBundle(join(dir, "lender"), files, { ...toyManifest(files), id: "lender", uses });
    expect(await complaint()).toContain(
      `bundle "lender" (${dir}/lender) borrows it in turn, from "borrower"; name the bundle that has the files`,
    );
    await expect(readBundle(join(dir, "lender"))).rejects.toThrow(/borrows it in turn, from "lender"/);
  });

  it("where it has files of its own in a folder that it borrows", async () => {
    await writeLender();
    const files = toyFiles();
    const uses = { text_encoder: { bundle: "lender", digest: partDigest(["text_encoder", "tokenizer"]) } };
    await writeBundle(join(dir, "borrower"), files, { ...toyManifest(files), id: "borrower", uses });
    expect(await complaint()).toContain(
      'uses.text_encoder: is borrowed from "lender", and text_encoder/config.json is among the bundle\'s own parts',
    );
  });

  it("where the lender's manifest cannot be trusted", async () => {
    await writeLender();
    await writeBorrower(["vae_decoder"]);
    const files = toyFiles();
    await writeBundle(join(dir, "lender"), files, { ...toyManifest(files), id: "lender", sizeMin: 9000 });
    expect(await complaint()).toContain(
      `bundle "lender" (${dir}/lender) cannot lend it: atelier.json: sizeMin is 9000`,
    );
  });

  it("where a part lent does not fit the rest", async () => {
    await writeLender({ change: { "text_encoder/config.json": json({ hidden_size: 16, vocab_size: 6 }) } });
    const lent = { ...toyFiles(), "text_encoder/config.json": json({ hidden_size: 16, vocab_size: 6 }) };
    await writeBorrower(["text_encoder"], "lender", lent);
    expect(await complaint()).toContain(
      "unet/config.json: cross_attention_dim is 8, the text encoder's hidden_size 16",
    );
  });

  it.each([
    ["unet", '"unet"'],
    ["text_encoder", "uses.text_encoder.digest is"],
  ])("where its manifest is wrong about %s", async (part, expected) => {
    const files = toyFiles();
    const uses = { [part]: { bundle: "lender", digest: "md5:0" } };
    await writeBundle(join(dir, "borrower"), files, { ...toyManifest(files), id: "borrower", uses });
    expect(await complaint()).toContain(expected);
  });

  it("where a lent graph keeps weights outside its own bundle", async () => {
    await writeLender();
    await writeBorrower(["vae_decoder"]);
    await rm(join(dir, "lender/vae_decoder/model.onnx"));
    await writeFile(join(dir, "secret"), toyFiles()["vae_decoder/model.onnx"]!);
    await symlink(join(dir, "secret"), join(dir, "lender/vae_decoder/model.onnx"));
    expect(await complaint()).toContain("vae_decoder/model.onnx: leaves the bundle's folder through a symbolic link");
  });
});

const FOLDERS: Readonly<Record<string, readonly string[]>> = {
  text_encoder: ["text_encoder", "tokenizer"],
  vae_decoder: ["vae_decoder"],
};

async function writeLender(options: { folder?: string; change?: ToyFiles } = {}): Promise<void> {
  const { folder = "lender", change = {} } = options;
  const files = { ...toyFiles(), ...change };
  await writeBundle(join(dir, folder), files, { ...toyManifest(files), id: "lender" });
}

/** Without the files of `parts`, which it takes from `bundle` by the digests that they have among `lent`. */
async function writeBorrower(parts: readonly string[], bundle = "lender", lent = toyFiles()): Promise<void> {
  const folders = parts.flatMap((part) => FOLDERS[part]!);
  const files = { ...without(toyFiles(), folders), "README.md": text("not a part of any network") };
  const { "README.md": _, ...listed } = files;
  const uses = Object.fromEntries(parts.map((part) => [part, { bundle, digest: partDigest(FOLDERS[part]!, lent) }]));
  await writeBundle(join(dir, "borrower"), files, { ...toyManifest(listed), id: "borrower", uses });
}

function without(files: ToyFiles, folders: readonly string[]): ToyFiles {
  return Object.fromEntries(Object.entries(files).filter(([name]) => !folders.includes(name.split("/")[0]!)));
}

function partDigest(folders: readonly string[], files = toyFiles()): string {
  return bundleDigest(partsOfFolders(toyManifest(files)["parts"] as PartList, folders));
}

function read() {
  return readBundle(join(dir, "borrower"));
}

async function complaint(): Promise<string> {
  return read().then(
    () => "nothing was refused",
    (error: ServingError) => (error.code === "INVALID_BUNDLE" ? error.detail : String(error)),
  );
}
