export { JSX } from "react";
