// Where the user is, in the address after #: a reload or a bookmark comes back to it.
import { useEffect, useState } from "preact/hooks";

export type Route =
  | { screen: "start" }
  | { screen: "model"; id: string }
  | { screen: "job"; id: string }
  | { screen: "runs" }
  | { screen: "compare"; ids: string[] };

const ID = /^[0-9a-f]{32}$/;

function parseRoute(hash: string): Route {
  const [screen, rest = ""] = hash.replace(/^#\/?/, "").split("/");
  if ((screen === "model" || screen === "job") && ID.test(rest)) return { screen, id: rest };
  if (screen === "runs") return { screen };
  if (screen === "compare") return { screen, ids: rest.split(",").filter((id) => ID.test(id)) };
  return { screen: "start" };
}

export function address(route: Route): string {
  if (route.screen === "start") return "#/";
  if (route.screen === "compare") return `#/compare/${route.ids.join(",")}`;
  return "id" in route ? `#/${route.screen}/${route.id}` : `#/${route.screen}`;
}

export function go(route: Route): void {
  location.hash = address(route);
}

export function useRoute(): Route {
  const [route, setRoute] = useState(() => parseRoute(location.hash));
  useEffect(() => {
    const follow = () => setRoute(parseRoute(location.hash));
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return route;
}
