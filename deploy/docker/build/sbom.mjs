/**
 * Writes what an image is made of as CycloneDX 1.5: `node sbom.mjs SERVICE APP DPKG_STATUS OUT`. Read from what is there:
 * the packages in node_modules, those that Debian installed, and Node itself.
 */
import { createHash } from "node:crypto";
import fs from "node:fs";
import { join } from "node:path";

const [service, app, dpkgStatus, out] = process.argv.slice(2);
const { version } = readJson(join(app, "services", service, "package.json"));
const components = [nodeItself(), ...npmPackages(), ...debianPackages()];

// One of the content, so that the same image has the same document; RFC 9562 calls it version 8.
const hex = createHash("sha256").update(JSON.stringify(components)).digest("hex");
const uuid = `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
const document = {
  bomFormat: "CycloneDX",
  specVersion: "1.5",
  serialNumber: `urn:uuid:${uuid}`,
  version: 1,
  metadata: { component: { type: "container", name: `atelier-${service}`, version, "bom-ref": `atelier-${service}` } },
  components,
};
fs.writeFileSync(out, `${JSON.stringify(document, null, 1)}\n`);
console.log(`${components.length} components`);

function nodeItself() {
  const node = process.versions.node;
  return { type: "platform", name: "node", version: node, "bom-ref": "node", purl: `pkg:generic/node@${node}` };
}

/** As npm wrote them down when it installed them, with their digests; those of ours are the image's own. */
function npmPackages() {
  const { packages } = readJson(join(app, "node_modules", ".package-lock.json"));
  return Object.entries(packages)
    .filter(([path, { link }]) => path.includes("node_modules/") && link !== true && fs.existsSync(join(app, path)))
    .map(([path, { integrity, license, version }]) => {
      const name = path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
      const purl = `pkg:npm/${name.replace("@", "%40")}@${version}`;
      return {
        type: "library",
        name,
        version,
        "bom-ref": path,
        purl,
        ...(license && { licenses: [{ license: { name: license } }] }),
        ...(integrity?.startsWith("sha512-") && {
          hashes: [{ alg: "SHA-512", content: Buffer.from(integrity.slice(7), "base64").toString("hex") }],
        }),
      };
    });
}

function debianPackages() {
  return fs
    .readFileSync(dpkgStatus, "utf8")
    .split("\n\n")
    .map((paragraph) =>
      Object.fromEntries([...paragraph.matchAll(/^([\w-]+): (.*)$/gm)].map(([, key, value]) => [key, value])),
    )
    .filter(({ Status }) => Status === "install ok installed")
    .map(({ Package: name, Version, Architecture }) => {
      const purl = `pkg:deb/debian/${encodeURIComponent(name)}@${encodeURIComponent(Version)}?arch=${Architecture}`;
      return { type: "library", name, version: Version, "bom-ref": purl, purl };
    });
}

function readJson(path) {
  return JSON.parse(fs.readFileSync(path, "utf8"));
}
