/** What a Kubernetes control plane is made of, and the tools that look at it: built once into the cache folder. */
import { goInstall } from "../services/go-install.ts";
import { onPath, type Program } from "../services/programs.ts";
import { goModulePrograms } from "./go-module-programs.ts";

const KUBERNETES = { major: 1, minor: 37, patch: 2 };
const KUBERNETES_PROGRAMS = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"] as const;

export type KubernetesPrograms = Readonly<Record<(typeof KUBERNETES_PROGRAMS)[number], Program>>;

/** All of one version. @throws NotToBeHad saying what was tried. */
export async function kubernetes(): Promise<KubernetesPrograms> {
  const { major, minor, patch } = KUBERNETES;
  const version = `v${major}.${minor}.${patch}`;
  const named = (name: string, value: string | number) => `-X k8s.io/component-base/version.${name}=${value}`;
  const programs = await goModulePrograms({
    name: "kubernetes",
    module: "k8s.io/kubernetes",
    version,
    stagingVersion: `v0.${minor}.${patch}`,
    unpublished: ["k8s.io/sample-cli-plugin", "k8s.io/sample-controller"],
    programs: Object.fromEntries(KUBERNETES_PROGRAMS.map((name) => [`k8s.io/kubernetes/cmd/${name}`, name])),
    ldflags: [named("gitVersion", version), named("gitMajor", major), named("gitMinor", minor)].join(" "),
  });
  return programs as KubernetesPrograms;
}

/** @throws NotToBeHad saying what was tried. */
export async function etcd(): Promise<Program> {
  const programs = await goModulePrograms({
    name: "etcd",
    module: "go.etcd.io/etcd/server/v3",
    version: "v3.7.3",
    programs: { "go.etcd.io/etcd/server/v3": "etcd" },
  });
  return programs["etcd"]!;
}

/** @throws NotToBeHad saying what was tried. */
export async function helm(): Promise<Program> {
  const program = { package: "helm.sh/helm/v4/cmd/helm", version: "v4.3.1", program: "helm" };
  return onPath("helm") ?? (await goInstall({ ...program, bringGo: true }));
}

/** Nodes and pods that say they run. @throws NotToBeHad saying what was tried. */
export async function kwok(): Promise<Program> {
  return goInstall({ package: "sigs.k8s.io/kwok/cmd/kwok", version: "v0.8.0", program: "kwok", bringGo: true });
}
