// A visitor in a headless browser, who notices what no page should do.
import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

const AXE = new URL("../node_modules/axe-core/axe.min.js", import.meta.url);
const LONG_MS = 240_000; // a whole compression on a busy machine
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

/** Opens the link; the second value gathers errors, requests elsewhere, and inaccessible parts. */
export async function visit({ link, browser: executablePath, ...options }) {
  const browser = await chromium.launch({
    executablePath,
    args: ["--no-sandbox", "--disable-gpu"],
  });
  // Without motion: clicks wait for what moves to come to rest.
  const usual = { viewport: { width: 1000, height: 850 }, reducedMotion: "reduce" };
  const context = await browser.newContext({ ...usual, ...options });
  context.setDefaultTimeout(LONG_MS);
  const page = await context.newPage();
  const noticed = { errors: [], elsewhere: [], inaccessible: [] };
  page.on("console", (message) => {
    // That a request was refused is for the scenario to judge.
    const refused = message.text().startsWith("Failed to load resource");
    if (message.type() === "error" && !refused) noticed.errors.push(message.text());
  });
  page.on("pageerror", (error) => noticed.errors.push(error.message));
  page.on("dialog", (dialog) => {
    noticed.errors.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  const { origin } = new URL(link);
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(`${origin}/`) && !url.startsWith("blob:")) noticed.elsewhere.push(url);
  });
  await page.goto(link);
  await page.waitForSelector("h1");
  return { browser, page, noticed };
}

/** Drops a file or folder of this machine on an element, as from a file manager. */
export async function drop(page, selector, path) {
  await page.locator(selector).scrollIntoViewIfNeeded();
  const { x, y, width, height } = await page.locator(selector).boundingBox();
  const at = { x: x + width / 2, y: y + height / 2 };
  const data = { items: [], files: [path], dragOperationsMask: 1 };
  const devtools = await page.context().newCDPSession(page);
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await devtools.send("Input.dispatchDragEvent", { type, ...at, data });
  }
  await devtools.detach();
}

/** Looks for what some people could not use, on the screen as it is. */
export async function examine(page, noticed, screen) {
  // What is being computed anew is dimmed for a moment.
  await page.locator(".stale").first().waitFor({ state: "detached" });
  await page.evaluate(await readFile(AXE, "utf8"));
  const found = await page.evaluate((tags) => window.axe.run(document, { runOnly: tags }), RULES);
  for (const { id, nodes } of found.violations) {
    noticed.inaccessible.push(`${screen}: ${id}: ${nodes.map((node) => node.html).join(" ")}`);
  }
}

export const text = async (page, selector) => (await page.textContent(selector)).trim();
export const focused = (page) => page.evaluate(() => document.activeElement?.outerHTML ?? "");
