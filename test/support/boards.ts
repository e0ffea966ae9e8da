import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** A panel of the boards that are shipped, as its JSON says it. */
export interface BoardPanel {
  readonly board: string;
  readonly row: string;
  readonly title: string;
  readonly type: "stat" | "timeseries";
  readonly unit: string;
  readonly decimals: number | undefined;
  readonly stacked: boolean;
  readonly max: number | undefined;
  readonly thresholds: readonly { readonly value: number | null; readonly color: string }[];
  readonly place: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  /** With Grafana's variables in them. */
  readonly queries: readonly { readonly legend: string; readonly expression: string }[];
}

const folder = join(import.meta.dirname, "../../deploy/observability/generated/dashboards");

export function readPanels(): readonly BoardPanel[] {
  return globSync("*.json", { cwd: folder })
    .sort()
    .flatMap((file) => {
      const board = JSON.parse(readFileSync(join(folder, file), "utf8")) as BoardJson;
      let row = "";
      return board.panels.flatMap(({ type, title, gridPos, targets = [], fieldConfig }): BoardPanel[] => {
        if (type === "row") {
          row = title;
          return [];
        }
        const { unit, decimals, max, thresholds, custom } = fieldConfig!.defaults;
        return [
          {
            board: board.title.replace("Atelier / ", ""),
            ...{ row, title, type, unit, decimals, max, place: gridPos },
            stacked: custom?.stacking?.mode === "normal",
            thresholds: thresholds?.steps ?? [],
            queries: targets.map(({ legendFormat, expr }) => ({ legend: legendFormat, expression: expr })),
          },
        ];
      });
    });
}

/** As Grafana asks with every variable at "All". */
export function withVariables(expression: string, rateInterval: string): string {
  return expression.replaceAll("$__rate_interval", rateInterval).replaceAll(/\$(namespace|pool|model)\b/g, ".*");
}

interface BoardJson {
  readonly title: string;
  readonly panels: readonly {
    readonly type: "row" | "stat" | "timeseries";
    readonly title: string;
    readonly gridPos: BoardPanel["place"];
    readonly targets?: readonly { readonly legendFormat: string; readonly expr: string }[];
    readonly fieldConfig?: {
      readonly defaults: {
        readonly unit: string;
        readonly decimals?: number;
        readonly max?: number;
        readonly thresholds?: { readonly steps: BoardPanel["thresholds"] };
        readonly custom?: { readonly stacking?: { readonly mode: string } };
      };
    };
  }[];
}
