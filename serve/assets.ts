// The files of the dashboard and of the prompt page. They are imported as text, so that a compiled binary holds them.
import uplotCss from "uplot/dist/uPlot.min.css" with { type: "text" };
import uplotJs from "uplot/dist/uPlot.iife.min.js" with { type: "text" };
import apiJs from "./dashboard/api.js" with { type: "text" };
import appJs from "./dashboard/app.js" with { type: "text" };
import chartJs from "./dashboard/chart.js" with { type: "text" };
import controlsJs from "./dashboard/controls.js" with { type: "text" };
import curvesJs from "./dashboard/curves.js" with { type: "text" };
import domJs from "./dashboard/dom.js" with { type: "text" };
import formatJs from "./dashboard/format.js" with { type: "text" };
import iconSvg from "./dashboard/icon.svg" with { type: "text" };
import indexHtml from "./dashboard/index.html" with { type: "text" };
import nowJs from "./dashboard/now.js" with { type: "text" };
import overviewJs from "./dashboard/overview.js" with { type: "text" };
import panelsJs from "./dashboard/panels.js" with { type: "text" };
import plotJs from "./dashboard/plot.js" with { type: "text" };
import promptHtml from "./dashboard/prompt.html" with { type: "text" };
import promptJs from "./dashboard/prompt.js" with { type: "text" };
import runsJs from "./dashboard/runs.js" with { type: "text" };
import scaleJs from "./dashboard/scale.js" with { type: "text" };
import seriesJs from "./dashboard/series.js" with { type: "text" };
import styleCss from "./dashboard/style.css" with { type: "text" };
import themeJs from "./dashboard/theme.js" with { type: "text" };

/** A file of the dashboard. */
export type Asset = { type: string; text: string };

/** The files by the path under which they are served. */
export const ASSETS: Record<string, Asset> = {
  "/api.js": { type: "text/javascript", text: apiJs },
  "/app.js": { type: "text/javascript", text: appJs },
  "/chart.js": { type: "text/javascript", text: chartJs },
  "/controls.js": { type: "text/javascript", text: controlsJs },
  "/curves.js": { type: "text/javascript", text: curvesJs },
  "/dom.js": { type: "text/javascript", text: domJs },
  "/format.js": { type: "text/javascript", text: formatJs },
  "/icon.svg": { type: "image/svg+xml", text: iconSvg },
  "/": { type: "text/html", text: indexHtml },
  "/now.js": { type: "text/javascript", text: nowJs },
  "/overview.js": { type: "text/javascript", text: overviewJs },
  "/panels.js": { type: "text/javascript", text: panelsJs },
  "/plot.js": { type: "text/javascript", text: plotJs },
  "/prompt": { type: "text/html", text: promptHtml },
  "/prompt.js": { type: "text/javascript", text: promptJs },
  "/runs.js": { type: "text/javascript", text: runsJs },
  "/scale.js": { type: "text/javascript", text: scaleJs },
  "/series.js": { type: "text/javascript", text: seriesJs },
  "/style.css": { type: "text/css", text: styleCss },
  "/theme.js": { type: "text/javascript", text: themeJs },
  "/uplot.css": { type: "text/css", text: uplotCss },
  "/uplot.js": { type: "text/javascript", text: uplotJs },
};
