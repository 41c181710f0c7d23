// Opens the page of docs/guides/browsers.md in a headless Chromium, as its reader does:
// `node page.js ORIGIN OTHER_ORIGIN SCREENSHOT`. Both origins serve the same page; only the first one is listed.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chromium } from "playwright-core";

const [origin, otherOrigin, screenshot] = process.argv.slice(2);
const patience = 60_000;

function grpcurl(method, request) {
  const arguments_ = ["-plaintext", "-d", JSON.stringify(request), "127.0.0.1:50051", `account.v1.AccountService/${method}`];
  return JSON.parse(execFileSync("grpcurl", arguments_, { encoding: "utf8" }));
}

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

async function open(address) {
  const page = await browser.newPage();
  page.setDefaultTimeout(patience);
  const refusals = [];
  page.on("console", (message) => {
    if (message.type() === "error") refusals.push(message.text());
  });
  await page.goto(address);
  return { page, refusals };
}

async function members(page, ...expected) {
  await page.waitForFunction(
    (expected) => [...document.querySelectorAll("li")].map((item) => item.textContent).join() === expected,
    expected.join(),
  );
}

async function add(page, username) {
  await page.getByLabel("User").fill(username);
  await page.getByRole("button", { name: "Add" }).click();
}

async function alerts(page, text) {
  await page.waitForFunction((text) => document.querySelector("[role=alert]").textContent.includes(text), text);
}

try {
  const { page } = await open(origin);
  await members(page, "olivia: OWNER");
  await add(page, "hannah");
  await members(page, "hannah: MEMBER", "olivia: OWNER");
  await page.screenshot({ path: screenshot });
  console.log("a page lists, adds, and sees the change");

  await add(page, "hannah");
  await alerts(page, "MEMBERSHIP_ALREADY_EXISTS");
  await add(page, "nobody");
  await alerts(page, "USER_NOT_FOUND");
  await add(page, "x".repeat(300));
  await alerts(page, "INVALID_FIELD");
  console.log("a page gets the reasons of errors");

  grpcurl("CreateUser", { username: "mike" });
  grpcurl("AddUserToOrganization", {
    organization_name: "acme",
    member_username: "mike",
    role: "ROLE_ADMIN",
    adding_user: "olivia",
  });
  await members(page, "hannah: MEMBER", "mike: ADMIN", "olivia: OWNER");
  console.log("a page sees the change of another client");

  const other = await open(otherOrigin);
  await alerts(other.page, "Failed to fetch");
  await members(other.page);
  assert.match(other.refusals.join("\n"), /blocked by CORS policy/);
  await add(other.page, "mike");
  await alerts(other.page, "Failed to fetch");
  console.log("a page of another origin is refused");
} finally {
  await browser.close();
}
