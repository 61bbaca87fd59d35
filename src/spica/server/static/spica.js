// Show the changing part of the page as the server sends it; start and stop jobs; say so when the server is gone.
const status = document.getElementById("status");

function show(html) {
  const open = new Set([...status.querySelectorAll("details:not([open])")].map((element) => element.closest("[data-job]").dataset.job));
  status.innerHTML = html;
  for (const element of status.querySelectorAll("details")) {
    if (open.has(element.closest("[data-job]").dataset.job)) element.open = false;
  }
}

function lost() {
  const state = status.querySelector(".state");
  if (state) { state.textContent = "no answer"; state.className = "state lost"; }
}

async function refresh() {
  try {
    const answer = await fetch("status", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    show(await answer.text());
  } catch { lost(); }
}

function poll() { setInterval(() => { if (!document.hidden) refresh(); }, 2000); }

if ("EventSource" in window) {
  const events = new EventSource("events");
  events.addEventListener("page", (event) => show(JSON.parse(event.data)));
  events.addEventListener("error", () => {
    lost();
    if (events.readyState === EventSource.CLOSED) poll(); // refused, by a proxy perhaps; else it tries again by itself
  });
} else {
  poll();
}

async function send(path, body, token) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers["X-Api-Key"] = token;
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const result = await answer.json();
  if (!answer.ok) throw new Error([result.error.message, result.error.got, result.error.hint].filter(Boolean).join(". "));
  return result;
}

const form = document.getElementById("prelabel");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const output = form.querySelector("output");
  const data = new FormData(form);
  output.textContent = "Asking Label Studio …";
  try {
    const job = await send("jobs/prelabel", { project: Number(data.get("project")), all: data.has("all") }, data.get("token"));
    output.textContent = job.started_now ? "" : "A job works on this project already.";
    refresh();
  } catch (error) { output.textContent = error.message; }
});

const train = document.getElementById("train");
if (train) train.addEventListener("submit", async (event) => {
  event.preventDefault();
  const output = train.querySelector("output");
  output.textContent = "Counting what is new …";
  try {
    await send("training", { project: Number(new FormData(train).get("project")) });
    output.textContent = "";
    refresh();
  } catch (error) { output.textContent = error.message; }
});

status.addEventListener("click", async (event) => {
  const { stop, cancel } = event.target.dataset;
  if (!stop && !cancel) return;
  event.target.disabled = true;
  try {
    await send(stop ? `jobs/${stop}/stop` : `training/${cancel}/cancel`, {});
  } catch (error) {
    if (error instanceof TypeError) return lost(); // nobody answers; anything else is a refusal with its reason
    (stop ? form : train).querySelector("output").textContent = error.message;
    refresh();
  }
});
