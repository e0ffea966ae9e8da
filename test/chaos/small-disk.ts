import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A folder for objects. Where this user may mount, on a disk of its own, which can be filled. */
export class SmallDisk {
  readonly folder: string;
  readonly #mountedAt: string | undefined;

  private constructor(folder: string, mountedAt: string | undefined) {
    this.folder = folder;
    this.#mountedAt = mountedAt;
  }

  static async make(megabytes: number): Promise<SmallDisk> {
    const at = await mkdtemp(join(tmpdir(), "atelier-chaos-"));
    let mounted = true;
    try {
      execFileSync("mount", ["-t", "tmpfs", "-o", `size=${megabytes}m`, "tmpfs", at], { stdio: "ignore" });
    } catch {
      mounted = false;
    }
    const folder = join(at, "objects");
    await mkdir(folder);
    return new SmallDisk(folder, mounted ? at : undefined);
  }

  get canBeFilled(): boolean {
    return this.#mountedAt !== undefined;
  }

  /** Writes until nothing goes on it any more; resolves to what makes room again. */
  async fill(): Promise<() => Promise<void>> {
    const filler = join(this.folder, "..", "filler");
    const block = Buffer.alloc(1024 * 1024);
    for (const size of [block.length, 4096, 1]) {
      for (;;) {
        const written = await writeFile(filler, block.subarray(0, size), { flag: "a" }).then(
          () => true,
          (error: NodeJS.ErrnoException) => {
            if (error.code !== "ENOSPC") throw error;
            return false;
          },
        );
        if (!written) break;
      }
    }
    return () => rm(filler);
  }

  async remove(): Promise<void> {
    if (this.#mountedAt !== undefined) execFileSync("umount", [this.#mountedAt]);
    await rm(this.#mountedAt ?? join(this.folder, ".."), { recursive: true, force: true });
  }
}
