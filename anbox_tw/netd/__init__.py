"""netd: kernel events to the framework, framework commands to the kernel."""
