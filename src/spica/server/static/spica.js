// Fetch the changing part of the page every two seconds; say so when the server is gone.
const status = document.getElementById("status");
async function refresh() {
  try {
    const answer = await fetch("status", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    status.innerHTML = await answer.text();
  } catch {
    const state = status.querySelector(".state");
    if (state) { state.textContent = "no answer"; state.className = "state lost"; }
  }
}
setInterval(() => { if (!document.hidden) refresh(); }, 2000);
