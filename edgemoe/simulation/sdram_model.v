// Behavioural 16-bit SDR SDRAM that checks how it is driven; plain Verilog, for Verilator and Icarus.
//
// Every broken rule is reported with its name and the cycle on the standard output and counted in `violations`:
//   power-up initialisation mode tCK auto-precharge cke
//   tRCD tRP tRAS tRC tRRD tRFC tWR tMRD      minimum times between commands
//   tREFI                                     a refresh is late by more than an interval
//   tREF                                      a row waited for its refresh for too long
//   closed-row open-row open-banks            an access without a row, a row over a row, a refresh with rows
//   cut-read                                  a precharge during a read burst
//   contention turnaround undriven            who drives the data bus
//
// Times are parameters in ps, and each may be replaced when the simulation starts: +sdram_t_rcd=20000. The clock's
// period is one of them, cycles are counted and multiplied. A rule is about whole cycles, as the chip sees them.
//
// The data bus is split: dq_i with dq_i_oe comes from the controller, dq_o with dq_o_oe goes to it. While the chip does
// not drive, dq_o has a pattern that no test writes. A column is in dq_o during the cycle that ends with the edge at
// which it is to be sampled: CAS edges after the one that took the READ.
//
// The array is in the order row, bank, column. +sdram_load=FILE reads it ($readmemh) at the start; a rising edge of `dump`
// writes the columns +sdram_dump_first=N .. +sdram_dump_last=N to the file +sdram_dump=FILE ($writememh).

module sdram_model #(
    parameter ROW_BITS = 13,
    parameter COLUMN_BITS = 9,
    parameter CLOCK_PS = 7519,
    parameter T_CK2 = 10000,
    parameter T_CK3 = 7000,
    parameter T_RCD = 20000,
    parameter T_RP = 20000,
    parameter T_RAS = 44000,
    parameter T_RC = 66000,
    parameter T_RRD = 15000,
    parameter T_RFC = 66000,
    parameter T_WR = 15000,
    parameter MRD_CLOCKS = 2,
    parameter REFRESH_US = 64000,
    parameter POWER_UP_US = 200,
    parameter INIT_REFRESHES = 2
) (
    input             clk,
    input             cke,
    input             csn,
    input             rasn,
    input             casn,
    input             wen,
    input      [1:0]  ba,
    input      [12:0] a,
    input      [1:0]  dqm,
    input      [15:0] dq_i,
    input             dq_i_oe,
    output reg [15:0] dq_o,
    output reg        dq_o_oe,
    input             dump,
    output reg [31:0] violations
);
    localparam SIZE = 1 << (ROW_BITS + 2 + COLUMN_BITS);
    localparam ROWS = 1 << ROW_BITS;
    localparam [15:0] FLOATING = 16'hdead;

    reg [15:0] mem [0:SIZE-1];

    // -- times ------------------------------------------------------------------------------------

    integer clock_ps, t_ck2, t_ck3, t_rcd, t_rp, t_ras, t_rc, t_rrd, t_rfc, t_wr, mrd_clocks, init_refreshes;
    integer refresh_us, power_up_us, dump_first, dump_last;
    reg [8*256-1:0] load_file, dump_file;
    reg             dumps;

    initial begin
        if (!$value$plusargs("sdram_clock_ps=%d", clock_ps)) clock_ps = CLOCK_PS;
        if (!$value$plusargs("sdram_t_ck2=%d", t_ck2)) t_ck2 = T_CK2;
        if (!$value$plusargs("sdram_t_ck3=%d", t_ck3)) t_ck3 = T_CK3;
        if (!$value$plusargs("sdram_t_rcd=%d", t_rcd)) t_rcd = T_RCD;
        if (!$value$plusargs("sdram_t_rp=%d", t_rp)) t_rp = T_RP;
        if (!$value$plusargs("sdram_t_ras=%d", t_ras)) t_ras = T_RAS;
        if (!$value$plusargs("sdram_t_rc=%d", t_rc)) t_rc = T_RC;
        if (!$value$plusargs("sdram_t_rrd=%d", t_rrd)) t_rrd = T_RRD;
        if (!$value$plusargs("sdram_t_rfc=%d", t_rfc)) t_rfc = T_RFC;
        if (!$value$plusargs("sdram_t_wr=%d", t_wr)) t_wr = T_WR;
        if (!$value$plusargs("sdram_mrd_clocks=%d", mrd_clocks)) mrd_clocks = MRD_CLOCKS;
        if (!$value$plusargs("sdram_refresh_us=%d", refresh_us)) refresh_us = REFRESH_US;
        if (!$value$plusargs("sdram_power_up_us=%d", power_up_us)) power_up_us = POWER_UP_US;
        if (!$value$plusargs("sdram_init_refreshes=%d", init_refreshes)) init_refreshes = INIT_REFRESHES;
        if (!$value$plusargs("sdram_dump_first=%d", dump_first)) dump_first = 0;
        if (!$value$plusargs("sdram_dump_last=%d", dump_last)) dump_last = SIZE - 1;
        dumps = $value$plusargs("sdram_dump=%s", dump_file) != 0;
        if ($value$plusargs("sdram_load=%s", load_file)) $readmemh(load_file, mem);
    end

    always @(posedge dump) if (dumps) $writememh(dump_file, mem, dump_first, dump_last);

    // -- state ------------------------------------------------------------------------------------

    localparam [63:0] LONG_AGO = 64'd1 << 40;  // cycles before the first one: times start there

    reg [63:0] cycle;
    reg [63:0] last_act [0:3];
    reg [63:0] last_pre [0:3];
    reg [63:0] last_wr [0:3];
    reg [63:0] last_any_act, last_ref, last_lmr;
    reg [12:0] row [0:3];
    reg [3:0]  open;

    reg        powered, closed_once, mode_set;
    integer    refreshes;              // since power-up
    reg [2:0]  cas;
    reg [3:0]  length;                 // columns of a burst

    reg [63:0] refreshed [0:ROWS-1];   // when each of the last refreshes was: one of them is due for every row
    reg [63:0] refresh_tick_ps;        // time in this interval, times ROWS
    integer    refresh_debt;

    reg        reading, writing;
    reg [3:0]  left;                   // columns of the burst after this one
    reg [1:0]  bank;
    reg [COLUMN_BITS-1:0] column;

    reg [15:0] pipe1, pipe2;
    reg        pipe1_valid, pipe2_valid, was_driving;
    reg [1:0]  dqm_before;

    integer i;
    initial begin
        violations = 0;
        cycle = LONG_AGO;
        last_any_act = 0; last_ref = 0; last_lmr = 0;
        for (i = 0; i < 4; i = i + 1) begin
            last_act[i] = 0; last_pre[i] = 0; last_wr[i] = 0; row[i] = 0;
        end
        open = 0;
        powered = 0; closed_once = 0; mode_set = 0; refreshes = 0; cas = 3; length = 1;
        refresh_tick_ps = 0; refresh_debt = 0;
        reading = 0; writing = 0; left = 0; bank = 0; column = 0;
        pipe1_valid = 0; pipe2_valid = 0; was_driving = 0; dqm_before = 3;
        dq_o = FLOATING; dq_o_oe = 0;
    end

    task violate(input [8*16-1:0] name);
        begin
            $display("sdram: cycle %0d: %0s", cycle - LONG_AGO, name);
            violations = violations + 1;
        end
    endtask

    // Whether fewer than ps have passed since the cycle `since`.
    function early(input [63:0] since, input integer ps);
        early = (cycle - since) * clock_ps < ps;
    endfunction

    // -- commands -----------------------------------------------------------------------------------

    wire [3:0] command = {csn, rasn, casn, wen};
    wire nop = csn || (rasn && casn && wen);
    wire [COLUMN_BITS-1:0] column_in = a[COLUMN_BITS-1:0];

    // The next column of a burst wraps in the block of its length.
    function [COLUMN_BITS-1:0] after(input [COLUMN_BITS-1:0] c);
        after = (c & ~(length - 1)) | ((c + 1) & (length - 1));
    endfunction

    function [ROW_BITS+COLUMN_BITS+1:0] place(input [1:0] b, input [COLUMN_BITS-1:0] c);
        place = {row[b][ROW_BITS-1:0], b, c};
    endfunction

    task closes(input [1:0] b);
        begin
            if (open[b]) begin
                if (early(last_act[b], t_ras)) violate("tRAS");
                if (early(last_wr[b], t_wr)) violate("tWR");
                last_pre[b] = cycle;
            end
            open[b] = 0;
        end
    endtask

    reg [15:0] fetched;
    reg        fetches;
    reg        drives;

    always @(posedge clk) begin
        fetches = 0;
        fetched = FLOATING;

        // A burst goes on, unless the command below begins another.
        if (reading || writing) begin
            if (left == 0) begin
                reading = 0;
                writing = 0;
            end else begin
                left = left - 1;
                column = after(column);
            end
        end

        if (!nop) begin
            if (!cke) violate("cke");
            if (!powered && (cycle - LONG_AGO + 1) * clock_ps < power_up_us * 64'd1000000) violate("power-up");
            powered = 1;
            if (early(last_lmr, (mrd_clocks - 1) * clock_ps + 1)) violate("tMRD");
            if (early(last_ref, t_rfc)) violate("tRFC");
        end

        case (command)
            4'b0011: begin  // ACTIVATE
                if (!mode_set || !closed_once || refreshes < init_refreshes) violate("initialisation");
                if (open[ba]) violate("open-row");
                if (early(last_act[ba], t_rc)) violate("tRC");
                if (early(last_any_act, t_rrd)) violate("tRRD");
                if (early(last_pre[ba], t_rp)) violate("tRP");
                open[ba] = 1;
                row[ba] = a;
                last_act[ba] = cycle;
                last_any_act = cycle;
            end
            4'b0101, 4'b0100: begin  // READ, WRITE
                if (!open[ba]) violate("closed-row");
                else if (early(last_act[ba], t_rcd)) violate("tRCD");
                if (a[10]) violate("auto-precharge");
                reading = wen;
                writing = !wen;
                left = length - 1;
                bank = ba;
                column = column_in;
            end
            4'b0110: begin  // BURST TERMINATE
                reading = 0;
                writing = 0;
            end
            4'b0010: begin  // PRECHARGE
                if (reading && (a[10] || ba == bank)) violate("cut-read");
                for (i = 0; i < 4; i = i + 1) if (a[10] || ba == i) closes(i[1:0]);
                if (a[10]) closed_once = 1;
            end
            4'b0001: begin  // REFRESH
                if (open != 0) violate("open-banks");
                if (!closed_once) violate("initialisation");
                for (i = 0; i < 4; i = i + 1) if (early(last_pre[i], t_rp)) violate("tRP");
                if (refreshes >= ROWS && (cycle - refreshed[refreshes % ROWS]) * clock_ps > refresh_us * 64'd1000000)
                    violate("tREF");
                refreshed[refreshes % ROWS] = cycle;
                refreshes = refreshes + 1;
                last_ref = cycle;
                if (refresh_debt > 0) refresh_debt = refresh_debt - 1;
            end
            4'b0000: begin  // LOAD MODE REGISTER
                if (open != 0) violate("open-banks");
                if (!closed_once) violate("initialisation");
                if (a[12:7] != 0 || a[3] != 0 || a[2:0] > 3 || (a[6:4] != 2 && a[6:4] != 3) || ba != 0) violate("mode");
                if (clock_ps < (a[6:4] == 2 ? t_ck2 : t_ck3)) violate("tCK");
                cas = a[6:4];
                length = 4'd1 << a[1:0];
                mode_set = 1;
                last_lmr = cycle;
            end
            default: ;
        endcase

        // -- data -------------------------------------------------------------------------------

        if (reading) begin
            fetches = 1;
            fetched = mem[place(bank, column)];
        end
        if (writing) begin
            if (!dq_i_oe && dqm != 3) violate("undriven");
            if (!dqm[0]) mem[place(bank, column)][7:0] = dq_i[7:0];
            if (!dqm[1]) mem[place(bank, column)][15:8] = dq_i[15:8];
            last_wr[bank] = cycle;
        end

        if (dq_i_oe && dq_o_oe) violate("contention");
        if (dq_i_oe && was_driving) violate("turnaround");
        was_driving = dq_o_oe;

        drives = (cas == 2 ? pipe1_valid : pipe2_valid) && dqm_before != 3;
        dq_o_oe <= drives;
        dq_o <= !drives ? FLOATING : cas == 2 ? pipe1 : pipe2;
        pipe2 = pipe1;
        pipe2_valid = pipe1_valid;
        pipe1 = fetched;
        pipe1_valid = fetches;
        dqm_before = dqm;

        // -- refresh ----------------------------------------------------------------------------

        if (mode_set && refreshes >= init_refreshes) begin
            refresh_tick_ps = refresh_tick_ps + clock_ps * ROWS;
            if (refresh_tick_ps >= refresh_us * 64'd1000000) begin
                refresh_tick_ps = refresh_tick_ps - refresh_us * 64'd1000000;
                // One is due in every interval and may come at any time in it; one more may be waiting.
                if (refresh_debt == 2) violate("tREFI");
                else refresh_debt = refresh_debt + 1;
            end
        end
        cycle = cycle + 1;
    end
endmodule
