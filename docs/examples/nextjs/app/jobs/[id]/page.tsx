import { JobProgress } from "./job";

export default async function Page({ params }: { params: Promise<{ id: string }> }) {
  return <JobProgress id={decodeURIComponent((await params).id)} />;
}
