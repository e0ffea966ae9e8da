/** What all boards are made of: panels that say what they mean, in both languages, and the frame around them. */

import * as common from "@grafana/grafana-foundation-sdk/common";
import { StackingConfigBuilder, VizLegendOptionsBuilder } from "@grafana/grafana-foundation-sdk/common";
import * as dashboard from "@grafana/grafana-foundation-sdk/dashboard";
import { DataqueryBuilder } from "@grafana/grafana-foundation-sdk/prometheus";
import { PanelBuilder as StatPanel } from "@grafana/grafana-foundation-sdk/stat";
import { PanelBuilder as LinesPanel } from "@grafana/grafana-foundation-sdk/timeseries";

const DATASOURCE = { type: "prometheus", uid: "$datasource" };
const WIDTH = 24;

interface PanelTexts {
  readonly title: string;
  /** What is seen, and what to make of it. */
  readonly about: string;
  /** The same in Chinese. */
  readonly aboutZh: string;
}

interface PanelBase extends PanelTexts {
  /** As Grafana names units: s, percentunit, reqps, short, bytes ... */
  readonly unit: string;
  readonly decimals?: number;
  /** Of 24 columns. */
  readonly width?: number;
  /** Where a value turns to this colour; what is below the first is `below`. */
  readonly thresholds?: Thresholds;
}

export interface Thresholds {
  readonly below: Colour;
  readonly from: readonly (readonly [value: number, colour: Colour])[];
}

type Colour = "green" | "yellow" | "orange" | "red" | "blue" | "text";

export interface Stat extends PanelBase {
  readonly query: string;
}

export interface Lines extends PanelBase {
  /** PromQL by what its series are called; `{{label}}` stands for a label's value. */
  readonly queries: readonly (readonly [legend: string, query: string])[];
  readonly stacked?: boolean;
  readonly min?: number;
  readonly max?: number;
}

export type BoardPanel = StatPanel | LinesPanel;

/** One number, and how it came about. */
export function stat({ query, width = 4, ...panel }: Stat): BoardPanel {
  return described(new StatPanel(), { ...panel, width })
    .height(5)
    .graphMode(common.BigValueGraphMode.Area)
    .colorMode(common.BigValueColorMode.Value)
    .reduceOptions(new common.ReduceDataOptionsBuilder().calcs(["lastNotNull"]))
    .withTarget(target(query, panel.title, 0));
}

/** Values over time. */
export function lines({ queries, stacked = false, min = 0, max, width = 8, ...panel }: Lines): BoardPanel {
  const builder = described(new LinesPanel(), { ...panel, width })
    .height(8)
    .min(min)
    .lineWidth(1)
    .fillOpacity(stacked ? 40 : 8)
    .showPoints(common.VisibilityMode.Never)
    .legend(
      new VizLegendOptionsBuilder()
        .displayMode(common.LegendDisplayMode.List)
        .placement(common.LegendPlacement.Bottom)
        .showLegend(true),
    );
  if (stacked) builder.stacking(new StackingConfigBuilder().mode(common.StackingMode.Normal));
  if (max !== undefined) builder.max(max);
  if (panel.thresholds !== undefined) {
    builder.thresholdsStyle(
      new common.GraphThresholdsStyleConfigBuilder().mode(common.GraphThresholdsStyleMode.Dashed),
    );
  }
  for (const [i, [legend, query]] of queries.entries()) builder.withTarget(target(query, legend, i));
  return builder;
}

function described<Panel extends BoardPanel>(
  panel: Panel,
  { title, about, aboutZh, unit, decimals, width, thresholds }: PanelBase,
): Panel {
  panel.title(title).description(`${about}\n\n${aboutZh}`).datasource(DATASOURCE).unit(unit).span(width!);
  if (decimals !== undefined) panel.decimals(decimals);
  const { below, from } = thresholds ?? { below: "blue", from: [] };
  panel.thresholds(
    new dashboard.ThresholdsConfigBuilder()
      .mode(dashboard.ThresholdsMode.Absolute)
      .steps([{ value: null, color: below }, ...from.map(([value, color]) => ({ value, color }))]),
  );
  return panel;
}

function target(query: string, legend: string, i: number): DataqueryBuilder {
  return new DataqueryBuilder()
    .refId("ABCDEFGH"[i]!)
    .datasource(DATASOURCE)
    .expr(query.trim().replaceAll(/\s+/g, " "))
    .legendFormat(legend)
    .range();
}

export interface Board {
  readonly uid: string;
  readonly title: string;
  readonly about: string;
  readonly aboutZh: string;
  /** Beside the data source and the namespace. */
  readonly variables?: readonly (keyof typeof VARIABLES)[];
  readonly rows: readonly { readonly title: string; readonly panels: readonly BoardPanel[] }[];
}

const VARIABLES = {
  pool: { label: "Worker pool", query: "label_values(atelier_gateway_pool_workers, pool)" },
  model: { label: "Model", query: "label_values(atelier_worker_model_resident, model)" },
};

/** Every label filter of a board; `namespace` is absent outside of Kubernetes, which `.*` fits as well. */
export const HERE = 'namespace=~"$namespace"';

/** The JSON that Grafana imports. */
export function boardJson({ uid, title, about, aboutZh, variables = [], rows }: Board): dashboard.Dashboard {
  const builder = new dashboard.DashboardBuilder(`Atelier / ${title}`)
    .uid(uid)
    .description(`${about}\n\n${aboutZh}`)
    .tags(["atelier"])
    .editable()
    .refresh("30s")
    .time({ from: "now-6h", to: "now" })
    .timezone("browser")
    .tooltip(dashboard.DashboardCursorSync.Crosshair)
    .link(
      new dashboard.DashboardLinkBuilder("Atelier's boards")
        .type(dashboard.DashboardLinkType.Dashboards)
        .tags(["atelier"])
        .includeVars(true)
        .keepTime(true)
        .asDropdown(false),
    )
    .withVariable(new dashboard.DatasourceVariableBuilder("datasource").label("Data source").type("prometheus"))
    .withVariable(variable("namespace", "Namespace", "label_values(atelier_gateway_workers, namespace)"));
  for (const name of variables) builder.withVariable(variable(name, VARIABLES[name].label, VARIABLES[name].query));
  for (const row of rows) {
    builder.withRow(new dashboard.RowBuilder(row.title));
    for (const panel of row.panels) builder.withPanel(panel);
  }
  const board = builder.build();
  inOrder(board.panels ?? []);
  // The builder would put the links to the other boards into a menu.
  for (const link of board.links ?? []) delete link.placement;
  return board;
}

function variable(name: string, label: string, query: string): dashboard.QueryVariableBuilder {
  return new dashboard.QueryVariableBuilder(name)
    .label(label)
    .datasource(DATASOURCE)
    .query({ query, refId: name })
    .refresh(dashboard.VariableRefresh.OnTimeRangeChanged)
    .sort(dashboard.VariableSort.NaturalAsc)
    .multi(true)
    .includeAll(true)
    .allValue(".*")
    .current({ text: ["All"], value: ["$__all"] });
}

/** Ids and places by order alone, so that what is generated differs only where a board does. */
function inOrder(panels: NonNullable<dashboard.Dashboard["panels"]>): void {
  let [x, y, height] = [0, 0, 0];
  panels.forEach((panel, i) => {
    panel.id = i + 1;
    const { w, h } = panel.gridPos ?? { w: WIDTH, h: 1 };
    const wide = panel.type === "row" ? WIDTH : w;
    if (x + wide > WIDTH) {
      [x, y, height] = [0, y + height, 0];
    }
    panel.gridPos = { x, y, w: wide, h: panel.type === "row" ? 1 : h };
    x += wide;
    height = Math.max(height, panel.gridPos.h);
  });
}
