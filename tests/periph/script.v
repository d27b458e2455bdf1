// Drives sdram_model from a script: one line per cycle, cke {csn rasn casn wen} ba a dqm oe dq in hexadecimal.
//
// Times in cycles of 10 ns: tRCD 3, tRP 2, tRAS 5, tRC 8, tRRD 2, tRFC 7, tWR 2, tMRD 2; 64 rows are to be refreshed
// in 64 us, so an interval is 100 cycles; power-up takes 1 us.
module top(
`ifdef __ICARUS__
);
    reg clk;  // begins with a rising edge, as the driver of the other simulator does
    always #5 clk = clk !== 1'b1;
`else
    input clk
);
`endif
    reg [3:0] command = 4'b1111;
    reg [1:0] ba = 0, dqm = 3;
    reg [12:0] a = 0;
    reg [15:0] dq = 0;
    reg oe = 0, cke = 1;
    wire [15:0] q;
    wire driven;
    wire [31:0] violations;
    integer file, got;
    reg [8*256-1:0] name;

    sdram_model #(.ROW_BITS(6), .COLUMN_BITS(9), .CLOCK_PS(10000), .T_CK2(10000), .T_CK3(7000), .T_RCD(30000), .T_RP(20000),
        .T_RAS(50000), .T_RC(80000), .T_RRD(20000), .T_RFC(70000), .T_WR(20000), .MRD_CLOCKS(2),
        .REFRESH_US(64), .POWER_UP_US(1), .INIT_REFRESHES(2)) model (
        .clk(clk), .cke(cke), .csn(command[3]), .rasn(command[2]), .casn(command[1]), .wen(command[0]), .ba(ba), .a(a), .dqm(dqm),
        .dq_i(dq), .dq_i_oe(oe), .dq_o(q), .dq_o_oe(driven), .dump(1'b0), .violations(violations));

    initial begin
        got = $value$plusargs("script=%s", name);
        file = $fopen(name, "r");
    end

    // Inputs change between the edges. What the memory drives is printed at the edge that samples it.
    always @(negedge clk) begin
        got = $fscanf(file, "%h %h %h %h %h %h %h", cke, command, ba, a, dqm, oe, dq);
        if (got != 7) begin
            $display("violations %0d", violations);
            $finish;
        end
    end
    always @(posedge clk) if (driven) $display("data %h", q);
endmodule
