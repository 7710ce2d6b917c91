// The files of the dashboard. They are imported as text, so that a compiled binary holds them.
import uplotCss from "uplot/dist/uPlot.min.css" with { type: "text" };
import uplotJs from "uplot/dist/uPlot.iife.min.js" with { type: "text" };
import apiJs from "./dashboard/api.js" with { type: "text" };
import appJs from "./dashboard/app.js" with { type: "text" };
import domJs from "./dashboard/dom.js" with { type: "text" };
import formatJs from "./dashboard/format.js" with { type: "text" };
import iconSvg from "./dashboard/icon.svg" with { type: "text" };
import indexHtml from "./dashboard/index.html" with { type: "text" };
import seriesJs from "./dashboard/series.js" with { type: "text" };
import styleCss from "./dashboard/style.css" with { type: "text" };
import themeJs from "./dashboard/theme.js" with { type: "text" };

/** A file of the dashboard. */
export type Asset = { type: string; text: string };

/** The files by the path under which they are served. */
export const ASSETS: Record<string, Asset> = {
  "/": { type: "text/html", text: indexHtml },
  "/api.js": { type: "text/javascript", text: apiJs },
  "/app.js": { type: "text/javascript", text: appJs },
  "/dom.js": { type: "text/javascript", text: domJs },
  "/format.js": { type: "text/javascript", text: formatJs },
  "/icon.svg": { type: "image/svg+xml", text: iconSvg },
  "/series.js": { type: "text/javascript", text: seriesJs },
  "/style.css": { type: "text/css", text: styleCss },
  "/theme.js": { type: "text/javascript", text: themeJs },
  "/uplot.css": { type: "text/css", text: uplotCss },
  "/uplot.js": { type: "text/javascript", text: uplotJs },
};
