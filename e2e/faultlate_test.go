package e2e

// lates are what comes when nobody reckons with it any more.
var lates = []fault{
	// before the grant it is given up, and the bytes that come then must do nothing; from the grant on both sides wait, and go on
	{name: "stall of 30 s", at: at("asked", "granted", "drain", "switched"), whole: true, proxied: true, want: ends(onA, nil), do: func(f *faulty) { f.proxy.stall() }, then: func(f *faulty) {
		f.r.t.Helper()
		if !f.proxy.standstill() {
			f.r.t.Error("nothing was said in all that time")
		}
	}},
	{name: "A's messages come after the reconnect", proxied: true, want: ends(either, own(onB, "grant")), do: func(f *faulty) { f.proxy.keep() }, then: func(f *faulty) {
		f.r.t.Helper()
		f.until("messages to be kept", func() bool { return f.proxy.keeps(3) }) // pings are among them
		next, flush := f.proxy.lateBytes()
		f.until("the next connection", next)
		f.r.t.Logf("%d bytes were late", flush())
	}},
}
