// Score ad candidates from JavaScript, with a deadline, retries and connection reuse.
//
//     make serve                                           # in another terminal
//     node examples/client.mjs http://127.0.0.1:8000
//
// Requires Node.js 20 or newer, and no packages. fetch() keeps its connections open.

import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

const RETRIED = new Set([429, 503]); // overloaded or shutting down: the same request can succeed a moment later
const DEFAULT_PAUSE_MS = 5;

export class DeadlineError extends Error {}

/** An error response from the server, with its problem details (RFC 9457). */
export class ScoringError extends Error {
  constructor(problem) {
    super(`${problem.status} ${problem.title}: ${problem.path ?? ""} ${problem.detail}`);
    this.problem = problem;
  }
}

/**
 * Return the response of POST /v1/score: `scores` in the order of the candidates, and `degraded`.
 *
 * If the server answers with 429 or 503, the request is sent again after `Retry-After`, if the budget allows it.
 * Throws DeadlineError when the budget is exhausted (fall back to your default ranking), and ScoringError when the
 * server refuses the request for another reason.
 */
export async function score(url, context, candidates, { budgetMs = 50, apiKey } = {}) {
  const deadline = performance.now() + budgetMs;
  const headers = { "content-type": "application/json", ...(apiKey && { authorization: `Bearer ${apiKey}` }) };
  for (let left = budgetMs; left > 1; left = deadline - performance.now()) {
    // Send the remaining time, because the server drops a request whose deadline has passed.
    const body = JSON.stringify({ context, candidates, timeout_ms: Math.max(1, Math.floor(left)) });
    let response;
    let answer;
    try {
      response = await fetch(`${url}/v1/score`, { method: "POST", headers, body, signal: AbortSignal.timeout(Math.ceil(left)) });
      answer = await response.json(); // read the whole body, so that the connection can be reused
    } catch (error) {
      if (error.name === "TimeoutError") break;
      throw error;
    }
    if (response.ok) return answer;
    if (response.status === 504) break;
    if (!RETRIED.has(response.status)) throw new ScoringError(answer);
    const retryAfter = response.headers.get("retry-after");
    const pause = retryAfter === null ? DEFAULT_PAUSE_MS : Number(retryAfter) * 1000;
    await sleep(Math.max(0, Math.min(pause, deadline - performance.now())));
  }
  throw new DeadlineError(`no answer within ${budgetMs} ms`);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const context = { user: "u17", country: "spain", device: "phone", hour: 21, session_depth: 3 };
  const candidates = Array.from({ length: 5 }, (_, number) => ({
    id: `ad-${number}`,
    features: { ad: `ad-${number}`, format: "video", bid: 1.2 },
  }));
  const answer = await score(process.argv[2] ?? "http://127.0.0.1:8000", context, candidates, { budgetMs: 1000 });
  for (const { id, ctr } of answer.scores.toSorted((a, b) => b.ctr - a.ctr)) console.log(`${id}: ${ctr.toFixed(4)}`);
  if (answer.degraded.length > 0) console.error(`degraded: ${answer.degraded.join(", ")}`);
}
