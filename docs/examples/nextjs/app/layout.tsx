import { CorrelatorProvider } from "correlator-client/react";
import type { ReactNode } from "react";

export default function Layout({ children }: { children: ReactNode }) {
  return (
    <html lang="en">
      <body>
        <CorrelatorProvider server="/correlator/">{children}</CorrelatorProvider>
      </body>
    </html>
  );
}
