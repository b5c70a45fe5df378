// What people do on the page. `node scenarios.mjs NAME JSON` plays one and prints what it saw as
// JSON; tests/serve/test_page.py gives it a server and judges.
import { drop, examine, focused, text, visit } from "./visitor.mjs";

async function giveModel(page, model) {
  await drop(page, ".drop", model);
  await page.waitForSelector("#samples");
}

async function giveSamples(page, samples) {
  await drop(page, ".drop:has(#samples)", samples);
  await page.waitForSelector(".given .good");
}

async function start(page) {
  await page.waitForSelector(".forecast strong");
  await page.focus("#start");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".stages li");
}

/** From a dropped model to the downloaded file and the comparison in the browser. */
async function wholePath(given) {
  const { browser, page, noticed } = await visit(given);
  const shoot = async (name) => {
    if (given.shots) await page.screenshot({ path: `${given.shots}/${name}.png`, fullPage: true });
  };
  await examine(page, noticed, "start");
  await shoot("start");
  await giveModel(page, given.model);
  const about = await text(page, ".facts");
  await giveSamples(page, given.samples);
  await page.focus("#max_drop");
  await page.waitForSelector(".forecast:not(.stale) strong");
  const forecasts = [];
  for (const key of ["Home", "ArrowRight", "End"]) {
    await page.keyboard.press(key);
    await page.waitForSelector(".forecast.stale");
    await page.waitForSelector(".forecast:not(.stale) strong");
    forecasts.push(await text(page, ".forecast [role=status]"));
  }
  for (let step = 0; step < 2; step++) await page.keyboard.press("ArrowLeft");
  const meaning = await text(page, ".meaning");
  await page.waitForSelector(".forecast:not(.stale) strong");
  await examine(page, noticed, "model");
  await shoot("model");
  await start(page);
  const focus = await focused(page);
  await page.waitForSelector(".point");
  await examine(page, noticed, "running");
  await shoot("running");
  await page.waitForSelector(".figures");
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.click("text=Download"),
  ]);
  await download.saveAs(given.download);
  const address = await page.getAttribute("text=Open the report", "href");
  const report = await page.request.get(new URL(address, given.link).href);
  await page.click("text=Try it in this browser");
  await page.waitForSelector(".speed");
  const agreement = await text(page, ".agreement");
  const classes = await page.$$eval(".scores", (tables) =>
    tables.map((table) => table.querySelector("th").textContent),
  );
  await examine(page, noticed, "done");
  await shoot("done");
  // A picture of one's own: a white bar on black, which is a one.
  const drawn = await page.evaluate(() => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 80;
    const pen = canvas.getContext("2d");
    pen.fillRect(0, 0, 80, 80);
    pen.fillStyle = "#fff";
    pen.fillRect(32, 4, 18, 72);
    return canvas.toDataURL("image/png").split(",")[1];
  });
  const picture = { name: "one.png", mimeType: "image/png", buffer: Buffer.from(drawn, "base64") };
  await page.setInputFiles("#try-input-0", picture);
  await page.waitForFunction(
    (before) => document.querySelector(".agreement")?.textContent.trim() !== before,
    agreement,
  );
  const ownClasses = await page.$$eval(".scores", (tables) =>
    tables.map((table) => table.querySelector("th").textContent),
  );
  // Another one, pasted: nothing but black.
  const own = await text(page, ".agreement");
  await page.evaluate(async () => {
    const canvas = new OffscreenCanvas(20, 20);
    canvas.getContext("2d").fillRect(0, 0, 20, 20);
    const clipboardData = new DataTransfer();
    const blob = await canvas.convertToBlob({ type: "image/png" });
    clipboardData.items.add(new File([blob], "black.png", { type: "image/png" }));
    dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
  });
  await page.waitForFunction(
    (before) => document.querySelector(".agreement")?.textContent.trim() !== before,
    own,
  );
  const found = {
    ...{ about, meaning, forecasts, focus, agreement, classes, ownClasses },
    verdict: await text(page, "h1"),
    speed: await text(page, ".speed"),
    figures: await page.$$eval(".figures tbody th", (rows) => rows.map((row) => row.textContent)),
    points: await page.$$eval(".point", (points) => points.length),
    chosen: await page.$$eval(".ring", (rings) => rings.length),
    report: [report.status(), (await report.text()).includes("<h1")],
  };
  await page.click("text=Runs");
  await page.waitForSelector(".runs");
  await examine(page, noticed, "runs");
  await browser.close();
  return { ...found, noticed };
}

/** A run that is stopped, and can be started again. */
async function cancelled(given) {
  const { browser, page, noticed } = await visit(given);
  await giveModel(page, given.model);
  await giveSamples(page, given.samples);
  await start(page);
  await page.click("text=Cancel");
  await page.click("text=Stop it");
  await page.waitForSelector(".badge.cancelled");
  const found = { heading: await text(page, "h1"), focus: await focused(page) };
  await examine(page, noticed, "cancelled");
  const again = await page.isVisible("text=Start it again");
  await page.click("text=Runs");
  await page.waitForSelector(".runs");
  const disabled = await page.isDisabled(".runs tr:has(.cancelled) input");
  await browser.close();
  return { ...found, again, disabled, noticed };
}

/** Files and entries that are wrong are told where they were given, and nothing else is lost. */
async function broken(given) {
  const { browser, page, noticed } = await visit(given);
  await drop(page, ".drop", given.broken);
  await page.waitForSelector("#model-problem .problem");
  const model = await text(page, "#model-problem");
  const tied = await page.getAttribute("#model", "aria-describedby");
  await page.fill("#model-path", "/nowhere/net.onnx");
  await page.click("text=Open");
  await page.waitForSelector("#model-path-problem .problem");
  const path = await text(page, "#model-path-problem");
  const kept = await page.inputValue("#model-path");
  await examine(page, noticed, "broken model");
  await giveModel(page, given.model);
  await page.focus("#max_drop");
  await page.keyboard.press("End");
  await drop(page, ".drop:has(#samples)", given.unfitting);
  await page.waitForSelector("#samples-problem .problem");
  const samples = await text(page, "#samples-problem");
  await page.click(".given button");
  await page.waitForSelector(".given", { state: "detached" });
  await page.click("text=More budgets and wishes");
  await page.fill("#max_size", "tiny");
  await page.waitForSelector("#max_size-problem .problem");
  const size = await text(page, "#max_size-problem");
  await page.click("#start");
  await page.waitForFunction(() => document.activeElement?.id === "max_size");
  await examine(page, noticed, "broken entries");
  const entered = [await page.inputValue("#max_drop"), await page.inputValue("#max_size")];
  await browser.close();
  return { model, tied, path, kept, samples, size, entered, noticed };
}

/** A reload before and during a run loses nothing. */
async function reloaded(given) {
  const { browser, page, noticed } = await visit(given);
  await giveModel(page, given.model);
  await giveSamples(page, given.samples);
  await page.focus("#max_drop");
  await page.keyboard.press("ArrowRight");
  await page.check("input[value=android]");
  await page.click("text=More budgets and wishes");
  // As soon as it was typed, before the page could draw it.
  const reload = page.waitForEvent("load");
  await page.locator("#max_size").evaluate((entry) => {
    entry.value = "80%";
    entry.dispatchEvent(new Event("input", { bubbles: true }));
    location.reload();
  });
  await reload;
  await page.waitForSelector(".given .good");
  const entered = {
    drop: await page.inputValue("#max_drop"),
    size: await page.inputValue("#max_size"),
    device: await page.inputValue("input[name=target]:checked"),
  };
  await start(page);
  await page.reload();
  await page.waitForSelector(".stages li");
  const running = await text(page, "h1");
  await page.close();
  // The run goes on without a page; another tab finds it.
  const other = await browser.contexts()[0].newPage();
  await other.goto(new URL("/#/runs", given.link).href);
  await other.click(".runs tbody a");
  await other.waitForSelector(".figures");
  const asked = await other.evaluate(async () => (await (await fetch("/api/jobs")).json())[0]);
  await browser.close();
  return { entered, running, settings: asked.settings, state: asked.state, noticed };
}

/** Names from a file are text, whatever they hold; numbers can be typed. */
async function hostile(given) {
  const { browser, page, noticed } = await visit(given);
  await giveModel(page, given.model);
  const shown = await text(page, ".facts");
  await giveSamples(page, given.samples);
  await start(page);
  await page.waitForSelector(".figures");
  await page.click("text=Try it in this browser");
  await page.waitForSelector(".speed");
  const input = await text(page, ".try-input h3 code");
  await page.fill("#try-input-0-text", "[1, 2, 3]");
  await page.click("text=Use these");
  await page.waitForSelector("#try-input-0-problem .problem");
  const tooFew = await text(page, "#try-input-0-problem");
  await page.fill("#try-input-0-text", given.numbers);
  await page.click("text=Use these");
  await page.waitForSelector("#try-input-0-problem .problem", { state: "detached" });
  await page.waitForSelector(".outputs[aria-busy=false]");
  const values = await text(page, ".try-input .values");
  const injected = await page.$$eval("img, b, script:not([src])", (found) => found.length);
  await browser.close();
  return { shown, input, tooFew, values, injected, noticed };
}

/** A folder of pictures, whose subfolders are classes. */
async function folder(given) {
  const { browser, page, noticed } = await visit(given);
  await giveModel(page, given.model);
  await giveSamples(page, given.samples);
  const described = await text(page, ".given");
  await browser.close();
  return { described, noticed };
}

/** A model whose weights lie in another file, and a sound of one's own. */
async function heard(given) {
  const { browser, page, noticed } = await visit(given);
  await drop(page, ".drop", given.model);
  await page.waitForSelector("#model-problem .problem");
  const missing = await text(page, "#model-problem");
  await examine(page, noticed, "missing weights");
  await giveModel(page, given.weights);
  await giveSamples(page, given.samples);
  const described = await text(page, ".given");
  await start(page);
  await page.waitForSelector(".figures");
  await page.click("text=Try it in this browser");
  await page.waitForSelector(".speed");
  const before = await text(page, ".try-input .values");
  await page.setInputFiles("#try-input-0", given.sound);
  await page.waitForFunction(
    (values) => document.querySelector(".try-input .values").textContent.trim() !== values,
    before,
  );
  await page.waitForSelector(".outputs[aria-busy=false]");
  const values = await text(page, ".try-input .values");
  await page.setInputFiles("#try-input-0", given.noSound);
  await page.waitForSelector("#try-input-0-problem .problem");
  const refused = await text(page, "#try-input-0-problem");
  const agreement = await text(page, ".agreement");
  await browser.close();
  return { missing, described, values, refused, agreement, noticed };
}

/** Two runs of a model, and their figures side by side. */
async function compared(given) {
  const { browser, page, noticed } = await visit(given);
  for (const key of ["Home", "End"]) {
    await page.click("text=New");
    await giveModel(page, given.model);
    await page.focus("#max_drop");
    await page.keyboard.press(key);
    await start(page);
    await page.waitForSelector(".figures");
  }
  await page.click("text=Runs");
  await page.waitForSelector(".runs");
  const before = await page.isDisabled("button:has-text('Compare')");
  for (const row of [0, 1]) await page.locator(".runs tbody input").nth(row).check();
  await page.click("button:has-text('Compare')");
  await page.waitForSelector(".compare td .badge");
  await examine(page, noticed, "compare");
  if (given.shots) await page.screenshot({ path: `${given.shots}/compare.png`, fullPage: true });
  const rows = await page.$$eval(".compare tbody tr", (found) =>
    found.map((row) => [...row.children].map((cell) => cell.textContent.trim())),
  );
  await browser.close();
  return { before, rows, noticed };
}

const SCENARIOS = { wholePath, cancelled, compared, broken, reloaded, hostile, heard, folder };
const [, , name, given] = process.argv;
console.log(JSON.stringify(await SCENARIOS[name](JSON.parse(given))));
