import { copyFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { cached, NotToBeHad } from "../services/cache-folder.ts";
import { findGo } from "../services/go-install.ts";
import { runProgram } from "../services/run-program.ts";

/** Kinds of others that the chart may make, as their own projects publish them. */
const SOURCES = [
  {
    module: "github.com/prometheus-operator/prometheus-operator",
    version: "v0.92.1",
    folder: "example/prometheus-operator-crd",
    files: ["monitoring.coreos.com_podmonitors.yaml", "monitoring.coreos.com_prometheusrules.yaml"],
  },
  {
    module: "github.com/kedacore/keda/v2",
    version: "v2.21.0",
    folder: "config/crd/bases",
    files: ["keda.sh_scaledobjects.yaml"],
  },
  {
    module: "sigs.k8s.io/gateway-api",
    version: "v1.6.0",
    folder: "config/crd/standard",
    files: ["gateway.networking.k8s.io_httproutes.yaml"],
  },
];

/**
 * Files with the CustomResourceDefinitions that the chart's optional objects are of, out of Go modules, kept in the cache
 * folder.
 *
 * @throws NotToBeHad saying what was tried.
 */
export async function crdFiles(): Promise<readonly string[]> {
  const versions = SOURCES.map(({ version }) => version).join("-");
  const folder = await cached(`crds-${versions}`, async (building) => {
    const go = await findGo();
    for (const { module, version, folder: from, files } of SOURCES) {
      const { code, stdout, stderr } = await runProgram(go, ["mod", "download", "-json", `${module}@${version}`]);
      if (code !== 0) throw new NotToBeHad(`${module} ${version}: ${(stdout + stderr).slice(-500)}`);
      const { Dir: dir } = JSON.parse(stdout) as { Dir: string };
      for (const file of files) await copyFile(join(dir, from, file), join(building, file));
    }
  });
  return (await readdir(folder)).sort().map((file) => join(folder, file));
}
