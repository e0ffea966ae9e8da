import { z } from "zod";
import packageJson from "../package.json" with { type: "json" };

/** What a release calls itself: one for all packages and services. */
export const VERSION: string = packageJson.version;

/** A variable of every service; images are built with it. */
export const buildVariables = {
  ATELIER_REVISION: z
    .string()
    .regex(/^[\w.+-]{1,64}$/, {
      error: "must be a revision such as a commit's hash: letters, digits, . _ + -, up to 64",
    })
    .optional()
    .describe("the revision of the source that was built, for `atelier_build_info`; images set it"),
};
