import { readdir, readFile, realpath } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type FileSource, parseObject } from "./bundle-files.ts";
import { BORROWABLE, type BorrowablePart, type BundleManifest, checkManifest, MANIFEST_FILE } from "./manifest.ts";
import { bundleDigest, checkParts, type PartList } from "./parts.ts";
import { BundleProblems } from "./problems.ts";

/** Folders beside a bundle that are looked at for a lender. */
const SIBLINGS_MAX = 1000;

/** Borrowed folders, by name: whose files stand in for them. */
export type BorrowedFolders = ReadonlyMap<string, FileSource>;

/**
 * Finds the parts that a bundle takes from others, and checks their files. A lender is a bundle that this worker was
 * given or one that lies beside the borrower; only its manifest and the files lent are read, so it need not be whole.
 *
 * What is borrowed has to be the lender's own: then no chain is longer than one, and none goes in a circle.
 */
export async function borrowParts(
  { uses = {}, id, parts }: BundleManifest,
  { root, lenderDirs }: { readonly root: string; readonly lenderDirs: readonly string[] },
  problems: BundleProblems,
): Promise<BorrowedFolders> {
  const folders = new Map<string, FileSource>();
  const wanted = BORROWABLE_PARTS.flatMap((part) => (uses[part] === undefined ? [] : [{ part, ...uses[part] }]));
  const lenders = wanted.length === 0 ? [] : await readLenders([...lenderDirs, ...(await siblings(root))]);
  for (const { part, bundle, digest } of wanted) {
    const complain = (reason: string) => problems.add(MANIFEST_FILE, `uses.${part}: ${reason}`);
    const own = Object.keys(within(parts, part))[0];
    if (own !== undefined) complain(`is borrowed from "${bundle}", and ${own} is among the bundle's own parts`);
    if (bundle === id) {
      complain("is borrowed from this bundle itself");
      continue;
    }
    // Copies of one bundle may lie about: the one that fits is as good as any.
    const candidates = lenders.filter((lender) => lender.id === bundle);
    const lender = candidates.find((one) => bundleDigest(within(one.parts, part)) === digest) ?? candidates[0];
    const complaint = lender === undefined ? notFound(bundle) : complaintAboutLender(lender, part, digest);
    if (complaint !== undefined) complain(complaint);
    if (lender === undefined || complaint !== undefined) continue;

    const lent = within(lender.parts, part);
    const faults = new BundleProblems(lender.dir);
    const good = await checkParts(lender.dir, lent, faults);
    for (const fault of faults.lines) complain(`"${bundle}" (${lender.dir}): ${fault}`);
    for (const folder of BORROWABLE[part]) folders.set(folder, { root: lender.dir, parts: lent, good });
  }
  return folders;
}

const BORROWABLE_PARTS = Object.keys(BORROWABLE) as readonly BorrowablePart[];

/** Those of `parts` that lie in the folders that go with `part`. Their digest is the part's. */
function within(parts: PartList, part: BorrowablePart): PartList {
  return partsOfFolders(parts, BORROWABLE[part]);
}

export function partsOfFolders(parts: PartList, folders: readonly string[]): PartList {
  return Object.fromEntries(Object.entries(parts).filter(([file]) => folders.includes(file.split("/")[0]!)));
}

interface Lender {
  readonly dir: string;
  readonly id: string;
  readonly parts: PartList;
  readonly uses: NonNullable<BundleManifest["uses"]>;
  /** Why its manifest is not to be trusted. */
  readonly fault: string | undefined;
}

function notFound(bundle: string): string {
  return `bundle "${bundle}" is neither among those that were given nor in a folder beside this one`;
}

function complaintAboutLender({ id, dir, parts, uses, fault }: Lender, part: BorrowablePart, digest: string) {
  if (fault !== undefined) return `bundle "${id}" (${dir}) cannot lend it: ${fault}`;
  const from = uses[part]?.bundle;
  if (from !== undefined) {
    return `bundle "${id}" (${dir}) borrows it in turn, from "${from}"; name the bundle that has the files`;
  }
  const lent = within(parts, part);
  if (Object.keys(lent).length === 0) return `bundle "${id}" (${dir}) has no ${part} to lend`;
  const found = bundleDigest(lent);
  if (found === digest) return undefined;
  return `bundle "${id}" (${dir}) has another one: its digest is ${found}, and ${digest} is wanted`;
}

/** Every folder among `dirs` that holds a manifest, each once. */
async function readLenders(dirs: readonly string[]): Promise<readonly Lender[]> {
  const lenders = new Map<string, Lender>();
  for (const dir of dirs) {
    const lender = await readLender(dir);
    if (lender !== undefined && !lenders.has(lender.dir)) lenders.set(lender.dir, lender);
  }
  return [...lenders.values()];
}

/** Undefined where there is nothing that calls itself a bundle: folders beside one may be anything. */
async function readLender(dir: string): Promise<Lender | undefined> {
  let text: string;
  let root: string;
  try {
    root = await realpath(dir);
    text = await readFile(join(root, MANIFEST_FILE), "utf8");
  } catch {
    return undefined;
  }
  const json = parseObject(text);
  if (typeof json === "string" || typeof json["id"] !== "string") return undefined;
  const faults = new BundleProblems(root);
  const manifest = checkManifest(json, faults);
  const fault = faults.lines.length === 0 ? undefined : faults.lines.join("; ");
  return { dir: root, id: json["id"], parts: manifest?.parts ?? {}, uses: manifest?.uses ?? {}, fault };
}

async function siblings(root: string): Promise<readonly string[]> {
  const parent = dirname(root);
  // A parent that cannot be listed holds no lender; whoever is not found is named.
  const entries = await readdir(parent, { withFileTypes: true }).catch(() => []);
  const folders = entries.filter((entry) => entry.isDirectory() || entry.isSymbolicLink());
  return folders.slice(0, SIBLINGS_MAX).map(({ name }) => join(parent, name));
}
